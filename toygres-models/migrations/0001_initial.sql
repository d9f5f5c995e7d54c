-- The metadata store. Everything is in the schema `toygres`; every connection pins its search_path.

-- Which state of an instance may follow which: the one table of legal transitions. A test compares
-- it with InstanceState::TRANSITIONS.
CREATE TABLE state_transitions (
    from_state text NOT NULL,
    to_state   text NOT NULL,
    PRIMARY KEY (from_state, to_state)
);
INSERT INTO state_transitions (from_state, to_state) VALUES
    ('creating', 'running'),
    ('creating', 'stopped'),
    ('creating', 'failed'),
    ('creating', 'deleting'),
    ('running',  'stopped'),
    ('running',  'deleting'),
    ('stopped',  'running'),
    ('stopped',  'deleting'),
    ('failed',   'creating'),
    ('failed',   'running'),
    ('failed',   'stopped'),
    ('failed',   'deleting'),
    ('deleting', 'running'),
    ('deleting', 'stopped'),
    ('deleting', 'failed'),
    ('deleting', 'deleted');

CREATE TABLE instances (
    id                  uuid        PRIMARY KEY,
    namespace           text        NOT NULL,
    name                text        NOT NULL,
    -- Which cluster, or on the local platform which machine, it runs on; NULL where that isn't known.
    cluster_id          text,
    -- What it is to be (InstanceSpec). Changed by requests and their reverts alone.
    spec                jsonb       NOT NULL,
    -- Counts the changes of the spec: the ETag. An instance of a deleted one's name goes on counting.
    generation          bigint      NOT NULL,
    state               text        NOT NULL DEFAULT 'creating'
        CHECK (state IN ('creating', 'running', 'stopped', 'failed', 'deleting', 'deleted')),
    -- What was seen of it (InstanceStatus).
    status              jsonb       NOT NULL DEFAULT '{}',
    -- The generation that the platform was last brought to.
    observed_generation bigint      NOT NULL DEFAULT 0,
    created_at          timestamptz NOT NULL DEFAULT now(),
    updated_at          timestamptz NOT NULL DEFAULT now(),
    deleted_at          timestamptz,
    -- What is searched.
    platform            text        NOT NULL GENERATED ALWAYS AS (spec ->> 'platform') STORED,
    storage_size_gb     bigint      GENERATED ALWAYS AS ((spec ->> 'storage_size_gb')::bigint) STORED
);
-- A live name is unique in its namespace, and free again after deletion.
CREATE UNIQUE INDEX instances_live_name ON instances (namespace, name) WHERE state <> 'deleted';
CREATE INDEX instances_by_name ON instances (namespace, name);
CREATE INDEX instances_by_label ON instances USING gin ((spec -> 'labels') jsonb_path_ops) WHERE state <> 'deleted';

CREATE FUNCTION check_state_transition() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.state IS DISTINCT FROM OLD.state AND NOT EXISTS (
        SELECT FROM toygres.state_transitions t WHERE t.from_state = OLD.state AND t.to_state = NEW.state
    ) THEN
        RAISE EXCEPTION 'instance % may not go from % to %', OLD.id, OLD.state, NEW.state
            USING ERRCODE = 'TG001';
    END IF;
    NEW.updated_at := now();
    RETURN NEW;
END $$;
CREATE TRIGGER instances_state_transition BEFORE UPDATE ON instances
    FOR EACH ROW EXECUTE FUNCTION check_state_transition();

CREATE TABLE operations (
    id                  uuid        PRIMARY KEY,
    -- The name of an OperationKind.
    kind                text        NOT NULL,
    instance_id         uuid        NOT NULL REFERENCES instances (id),
    namespace           text        NOT NULL,
    instance_name       text        NOT NULL,
    -- Which servers can work on it: the id of a machine or a cluster, or the platform's name.
    place               text        NOT NULL,
    -- What it does, for a person: the kind, or for an update what changes.
    summary             text        NOT NULL,
    -- What was asked for beyond the spec.
    input               jsonb       NOT NULL DEFAULT '{}',
    -- The instance's spec before it, and the one that it brings about.
    spec_before         jsonb       NOT NULL,
    spec                jsonb       NOT NULL,
    -- The generation that it brings the platform to.
    generation          bigint      NOT NULL,
    -- The instance's state when it was asked for.
    state_before        text        NOT NULL,
    state               text        NOT NULL DEFAULT 'pending'
        CHECK (state IN ('pending', 'running', 'succeeded', 'failed', 'cancelled')),
    -- Whether it failed or was cancelled, and its workflow restores what was before.
    reverting           boolean     NOT NULL DEFAULT false,
    -- Who asked, a token's name or 'toygres' itself; and for what, for a person.
    actor               text        NOT NULL DEFAULT 'toygres',
    cause               text        NOT NULL,
    -- The token's id and the request's Idempotency-Key, and a digest of the request: the same request again
    -- is answered with this operation.
    idempotency_key     text,
    request_sha256      bytea       CHECK (octet_length(request_sha256) = 32),
    -- Which failed operation this one tries again.
    retry_of            uuid        REFERENCES operations (id),
    cancel_requested_at timestamptz,
    cancel_requested_by text,
    error               jsonb,
    -- Counts the changes of the operation and its steps, so that one can wait for the next.
    revision            bigint      NOT NULL DEFAULT 1,
    created_at          timestamptz NOT NULL DEFAULT now(),
    started_at          timestamptz,
    finished_at         timestamptz
);
-- One operation that changes an instance is at work on it, and one delete, which may overtake that.
CREATE UNIQUE INDEX operations_one_at_work ON operations (instance_id, (kind = 'delete')) WHERE state IN ('pending', 'running');
CREATE UNIQUE INDEX operations_by_idempotency_key ON operations (idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX operations_by_instance ON operations (instance_id, created_at);
CREATE INDEX operations_by_time ON operations (created_at);
CREATE INDEX operations_by_state ON operations (state, id) WHERE state IN ('pending', 'running');
-- How long operations of a kind take.
CREATE INDEX operations_finished ON operations (kind, finished_at DESC) WHERE state = 'succeeded';
-- What refers to an operation has to be found before it is forgotten.
CREATE INDEX operations_by_retry ON operations (retry_of) WHERE retry_of IS NOT NULL;

CREATE TABLE operation_steps (
    operation_id uuid        NOT NULL REFERENCES operations (id) ON DELETE CASCADE,
    name         text        NOT NULL,
    position     integer     NOT NULL,
    state        text        NOT NULL CHECK (state IN ('running', 'succeeded', 'failed')),
    attempts     integer     NOT NULL,
    started_at   timestamptz NOT NULL,
    finished_at  timestamptz,
    error        jsonb,
    PRIMARY KEY (operation_id, name)
);

-- What happened, mostly to an instance; also to a token or a namespace.
CREATE TABLE events (
    id            bigint      PRIMARY KEY,
    instance_id   uuid        REFERENCES instances (id),
    namespace     text,
    instance_name text,
    kind          text        NOT NULL,
    message       text        NOT NULL,
    actor         text        NOT NULL DEFAULT 'toygres',
    cause         text        NOT NULL,
    operation_id  uuid        REFERENCES operations (id),
    created_at    timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX events_by_instance ON events (instance_id, id);
CREATE INDEX events_by_time ON events (created_at);
CREATE INDEX events_by_namespace ON events (namespace, id);
CREATE INDEX events_of_platforms ON events (id) WHERE instance_id IS NULL AND kind LIKE 'platform%';
CREATE INDEX events_by_operation ON events (operation_id) WHERE operation_id IS NOT NULL;
CREATE SEQUENCE event_ids OWNED BY events.id;

-- Ids in the order of commits: a reader who has seen an id has seen all smaller ones. The lock is held until
-- the transaction ends, so an event is the last thing that a transaction writes.
CREATE FUNCTION number_event() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(7846918);
    NEW.id := nextval('toygres.event_ids');
    RETURN NEW;
END $$;
CREATE TRIGGER events_number BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION number_event();

-- Up to which id events were removed for their age: a reader who goes on before that has missed some.
CREATE TABLE event_horizon (
    one            boolean PRIMARY KEY DEFAULT true CHECK (one),
    pruned_through bigint  NOT NULL DEFAULT 0
);
INSERT INTO event_horizon DEFAULT VALUES;

-- TCP ports of the local platform's instances.
CREATE TABLE ports (
    port      integer PRIMARY KEY CHECK (port BETWEEN 1 AND 65535),
    namespace text    NOT NULL,
    name      text    NOT NULL,
    UNIQUE (namespace, name)
);

-- Quotas; a namespace without a row has none.
CREATE TABLE namespaces (
    name           text        PRIMARY KEY,
    -- NULL: no limit.
    max_instances  integer     CHECK (max_instances >= 0),
    max_storage_gb bigint      CHECK (max_storage_gb >= 0),
    revision       bigint      NOT NULL DEFAULT 1
);

-- Tokens of the API. The secret itself is nowhere: it was shown once.
CREATE TABLE tokens (
    id            uuid        PRIMARY KEY,
    -- Its holder; unique among those that aren't revoked.
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

-- When each part of the instances was last looked at. What is older than a few intervals is not known any more.
CREATE TABLE sweeps (
    -- The id of a machine or a cluster, or the platform's name.
    place            text             NOT NULL,
    shard            integer          NOT NULL,
    interval_seconds double precision NOT NULL,
    took_seconds     double precision NOT NULL,
    instances        integer          NOT NULL,
    finished_at      timestamptz      NOT NULL,
    PRIMARY KEY (place, shard)
);

-- How instances' health changed; of each the latest.
CREATE TABLE health_changes (
    instance_id uuid        NOT NULL REFERENCES instances (id) ON DELETE CASCADE,
    at          timestamptz NOT NULL,
    status      text        NOT NULL CHECK (status IN ('healthy', 'degraded', 'unhealthy', 'unknown')),
    reasons     jsonb       NOT NULL,
    PRIMARY KEY (instance_id, at)
);

-- Listeners are woken by changes; what changed they read.
CREATE FUNCTION notify_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify(TG_ARGV[0], NEW.id::text);
    RETURN NULL;
END $$;
CREATE TRIGGER operations_notify AFTER INSERT OR UPDATE ON operations
    FOR EACH ROW EXECUTE FUNCTION notify_change('toygres_operations');
CREATE TRIGGER events_notify AFTER INSERT ON events
    FOR EACH ROW EXECUTE FUNCTION notify_change('toygres_events');
