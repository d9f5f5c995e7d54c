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
    ('creating', 'failed'),
    ('creating', 'deleting'),
    ('running',  'deleting'),
    ('failed',   'deleting'),
    ('deleting', 'failed'),
    ('deleting', 'deleted');

CREATE TABLE instances (
    id                            uuid        PRIMARY KEY,
    namespace                     text        NOT NULL,
    name                          text        NOT NULL,
    platform                      text        NOT NULL,
    postgres_version              text        NOT NULL,
    -- 0: not known, of a record that update-metadata made by itself.
    storage_size_gb               integer     NOT NULL CHECK (storage_size_gb >= 0),
    use_load_balancer             boolean     NOT NULL DEFAULT false,
    dns_label                     text,
    state                         text        NOT NULL DEFAULT 'creating'
        CHECK (state IN ('creating', 'running', 'failed', 'deleting', 'deleted')),
    health_status                 text,
    ip_connection_string          text,
    dns_connection_string         text,
    health_check_orchestration_id text,
    -- {step, kind, message, retryable, evidence}: why it is `failed`.
    failure                       jsonb,
    created_at                    timestamptz NOT NULL DEFAULT now(),
    updated_at                    timestamptz NOT NULL DEFAULT now(),
    deleted_at                    timestamptz
);
-- A live name is unique in its namespace, and free again after deletion.
CREATE UNIQUE INDEX instances_live_name ON instances (namespace, name) WHERE state <> 'deleted';

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
    id            uuid        PRIMARY KEY,
    kind          text        NOT NULL CHECK (kind IN ('create', 'delete')),
    instance_id   uuid        NOT NULL REFERENCES instances (id),
    namespace     text        NOT NULL,
    instance_name text        NOT NULL,
    state         text        NOT NULL DEFAULT 'pending'
        CHECK (state IN ('pending', 'running', 'succeeded', 'failed')),
    -- Who asked, and for what.
    cause         text        NOT NULL,
    error         jsonb,
    -- Counts the changes of the operation and its steps, so that one can wait for the next.
    revision      bigint      NOT NULL DEFAULT 1,
    created_at    timestamptz NOT NULL DEFAULT now(),
    started_at    timestamptz,
    finished_at   timestamptz
);
-- At most one operation of a kind is at work on an instance.
CREATE UNIQUE INDEX operations_one_at_work ON operations (instance_id, kind) WHERE state IN ('pending', 'running');
CREATE INDEX operations_by_instance ON operations (instance_id, created_at);
CREATE INDEX operations_by_time ON operations (created_at);

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

CREATE TABLE events (
    id            bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    instance_id   uuid        NOT NULL REFERENCES instances (id),
    namespace     text        NOT NULL,
    instance_name text        NOT NULL,
    kind          text        NOT NULL,
    message       text        NOT NULL,
    cause         text        NOT NULL,
    operation_id  uuid        REFERENCES operations (id),
    created_at    timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX events_by_instance ON events (instance_id, id);

-- TCP ports of the local platform's instances.
CREATE TABLE ports (
    port      integer PRIMARY KEY CHECK (port BETWEEN 1 AND 65535),
    namespace text    NOT NULL,
    name      text    NOT NULL,
    UNIQUE (namespace, name)
);

-- Whoever waits for an operation is woken by its changes; a step's change is its operation's.
CREATE FUNCTION notify_operation() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('toygres_operations', NEW.id::text);
    RETURN NULL;
END $$;
CREATE TRIGGER operations_notify AFTER INSERT OR UPDATE ON operations
    FOR EACH ROW EXECUTE FUNCTION notify_operation();
