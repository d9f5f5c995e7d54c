-- A control plane that several people and programs share: who asked, what may be changed, what is
-- counted, and a stream of events that nobody misses one of.

-- A delete that nothing was done of yet can be taken back; a failed creation can be tried again.
INSERT INTO state_transitions (from_state, to_state) VALUES
    ('deleting', 'running'),
    ('failed',   'creating');

ALTER TABLE instances
    -- {key: value}, for the people who sort them.
    ADD COLUMN labels            jsonb   NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(labels) = 'object'),
    ADD COLUMN delete_protection boolean NOT NULL DEFAULT false,
    -- Counts the changes of everything but health: the ETag that an update may ask for.
    ADD COLUMN revision          bigint  NOT NULL DEFAULT 1;
-- An instance of a name that was there before goes on counting, so that no ETag is of two instances.
CREATE INDEX instances_by_name ON instances (namespace, name);
CREATE INDEX instances_by_label ON instances USING gin (labels jsonb_path_ops) WHERE state <> 'deleted';

CREATE OR REPLACE FUNCTION check_state_transition() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    uncounted CONSTANT text[] := ARRAY['health_status', 'updated_at', 'revision'];
BEGIN
    IF NEW.state IS DISTINCT FROM OLD.state AND NOT EXISTS (
        SELECT FROM toygres.state_transitions t WHERE t.from_state = OLD.state AND t.to_state = NEW.state
    ) THEN
        RAISE EXCEPTION 'instance % may not go from % to %', OLD.id, OLD.state, NEW.state
            USING ERRCODE = 'TG001';
    END IF;
    NEW.updated_at := now();
    NEW.revision := OLD.revision;
    IF to_jsonb(NEW) - uncounted IS DISTINCT FROM to_jsonb(OLD) - uncounted THEN
        NEW.revision := OLD.revision + 1;
    END IF;
    RETURN NEW;
END $$;

-- Quotas; a namespace without a row has none.
CREATE TABLE namespaces (
    name           text        PRIMARY KEY,
    -- NULL: no limit.
    max_instances  integer     CHECK (max_instances >= 0),
    max_storage_gb bigint      CHECK (max_storage_gb >= 0),
    revision       bigint      NOT NULL DEFAULT 1,
    created_at     timestamptz NOT NULL DEFAULT now(),
    updated_at     timestamptz NOT NULL DEFAULT now()
);

-- Whom the API lets in. The secret itself is nowhere: it was shown once.
CREATE TABLE tokens (
    id            uuid        PRIMARY KEY,
    -- Whose it is; unique among those that aren't revoked.
    name          text        NOT NULL,
    role          text        NOT NULL CHECK (role IN ('admin', 'editor', 'viewer')),
    -- NULL: every namespace.
    namespaces    text[],
    -- SHA-256 of the secret, which has 256 random bits: nothing that could be guessed.
    secret_sha256 bytea       NOT NULL CHECK (octet_length(secret_sha256) = 32),
    created_by    text        NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now(),
    expires_at    timestamptz,
    revoked_by    text,
    revoked_at    timestamptz,
    last_used_at  timestamptz
);
CREATE UNIQUE INDEX tokens_live_name ON tokens (name) WHERE revoked_at IS NULL;

-- Servers keep tokens in memory for a moment; a change empties that.
CREATE FUNCTION notify_token() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('toygres_tokens', NEW.id::text);
    RETURN NULL;
END $$;
CREATE TRIGGER tokens_notify AFTER UPDATE OF revoked_at, expires_at, role, namespaces ON tokens
    FOR EACH ROW EXECUTE FUNCTION notify_token();

ALTER TABLE operations
    DROP CONSTRAINT operations_kind_check,
    ADD CONSTRAINT operations_kind_check CHECK (kind IN ('create', 'update', 'delete')),
    DROP CONSTRAINT operations_state_check,
    ADD CONSTRAINT operations_state_check CHECK (state IN ('pending', 'running', 'succeeded', 'failed', 'cancelled')),
    -- Who asked: a token's name, or 'toygres' itself.
    ADD COLUMN actor               text NOT NULL DEFAULT 'toygres',
    -- The token's id and the request's Idempotency-Key: the same request again is this operation.
    ADD COLUMN idempotency_key     text,
    -- What was there before: the instance's state (delete), or the values that change (update).
    ADD COLUMN previous            jsonb,
    -- Which failed operation this one tries again.
    ADD COLUMN retry_of            uuid REFERENCES operations (id),
    -- Somebody doesn't want it any more; its workflow sees that and puts back what was.
    ADD COLUMN cancel_requested_at timestamptz,
    ADD COLUMN cancel_requested_by text;
CREATE UNIQUE INDEX operations_by_idempotency_key ON operations (idempotency_key) WHERE idempotency_key IS NOT NULL;
-- How long operations of a kind take.
CREATE INDEX operations_finished ON operations (kind, finished_at DESC) WHERE state = 'succeeded';
CREATE INDEX operations_by_state ON operations (state, id) WHERE state IN ('pending', 'running');
-- What refers to an operation has to be found before it is forgotten.
CREATE INDEX operations_by_retry ON operations (retry_of) WHERE retry_of IS NOT NULL;

-- Answers to requests with an Idempotency-Key, for their repeats.
CREATE TABLE idempotency_keys (
    -- The token's id and the key.
    key            text        PRIMARY KEY,
    -- Of method, path, query and body: the same key for anything else is refused.
    request_sha256 bytea       NOT NULL CHECK (octet_length(request_sha256) = 32),
    -- Until then a server is at work on it; if it was killed, a repeat takes over after that.
    held_until     timestamptz NOT NULL,
    -- NULL until it was answered.
    status         smallint,
    headers        jsonb,
    body           bytea,
    created_at     timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX idempotency_keys_by_time ON idempotency_keys (created_at);

-- Events: also of what is no instance (a token, a namespace), with who did it.
ALTER TABLE events
    ALTER COLUMN instance_id DROP NOT NULL,
    ALTER COLUMN namespace DROP NOT NULL,
    ALTER COLUMN instance_name DROP NOT NULL,
    ADD COLUMN actor text NOT NULL DEFAULT 'toygres';
CREATE INDEX events_by_time ON events (created_at);
CREATE INDEX events_by_namespace ON events (namespace, id);
CREATE INDEX events_by_operation ON events (operation_id) WHERE operation_id IS NOT NULL;

-- An identity's number would be taken before the trigger's, and thrown away.
ALTER TABLE events ALTER COLUMN id DROP IDENTITY;
CREATE SEQUENCE event_ids OWNED BY events.id;
SELECT setval('event_ids', coalesce(max(id), 0) + 1, false) FROM events;

-- Ids in the order of commits: whoever has seen an id has seen all that are smaller. The lock is
-- held until the transaction ends, so an event is the last thing that a transaction writes. Servers from before this
-- migration store a create's password after its event, in a cluster perhaps, and let their transactions pause without end:
-- nobody else waits for that for longer than this.
CREATE FUNCTION number_event() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('idle_in_transaction_session_timeout', '5s', true);
    PERFORM pg_advisory_xact_lock(7846918);
    NEW.id := nextval('toygres.event_ids');
    RETURN NEW;
END $$;
CREATE TRIGGER events_number BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION number_event();

CREATE FUNCTION notify_event() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('toygres_events', NEW.id::text);
    RETURN NULL;
END $$;
CREATE TRIGGER events_notify AFTER INSERT ON events FOR EACH ROW EXECUTE FUNCTION notify_event();

-- Up to which id events were pruned: whoever asks to go on before that has missed some.
CREATE TABLE event_horizon (
    one            boolean PRIMARY KEY DEFAULT true CHECK (one),
    pruned_through bigint  NOT NULL DEFAULT 0
);
INSERT INTO event_horizon DEFAULT VALUES;
