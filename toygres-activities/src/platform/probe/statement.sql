-- What a probe asks, in one row of one text. What stands in braces is the version's.
-- $1: the file that the pod's own probe writes about its volume, if there is one.
SELECT json_build_object(
    -- A write: it returns when the transaction's end is on disk, or fails.
    'written', CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_logical_emit_message(true, 'toygres', '')::text END,
    'in_recovery', pg_is_in_recovery(),
    'server_version', current_setting('server_version'),
    'started_at', extract(epoch FROM pg_postmaster_start_time()),
    -- By what holds for all: this session may have it from its own role or database.
    'read_only', current_setting('default_transaction_read_only')::bool AND NOT EXISTS (
        SELECT FROM pg_db_role_setting s, unnest(s.setconfig) c WHERE c LIKE 'default_transaction_read_only=%'
            AND (s.setrole = current_user::regrole OR s.setrole = 0 AND s.setdatabase = (
                SELECT oid FROM pg_database WHERE datname = current_database()))),
    'read_only_databases', (
        SELECT json_agg(d.datname) FROM (
            SELECT d.datname FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase
            WHERE s.setrole = 0 AND EXISTS (
                SELECT FROM unnest(s.setconfig) c WHERE c ~* '^default_transaction_read_only=(on|true|yes|1)$')
            ORDER BY 1 LIMIT 50) d),
    'max_connections', current_setting('max_connections')::int,
    'reserved_connections', current_setting('superuser_reserved_connections')::int
        + coalesce(current_setting('reserved_connections', true)::int, 0),
    'activity', (
        SELECT json_build_object(
            'total', count(*),
            'active', count(*) FILTER (WHERE state = 'active'),
            'idle', count(*) FILTER (WHERE state = 'idle'),
            'idle_in_transaction', count(*) FILTER (WHERE state LIKE 'idle in transaction%'),
            'waiting_for_lock', count(*) FILTER (WHERE wait_event_type = 'Lock'),
            'longest_transaction_seconds', coalesce(max(extract(epoch FROM clock_timestamp() - xact_start)), 0),
            'longest_transaction_pid', (array_agg(pid ORDER BY xact_start))[1])
        FROM pg_stat_activity WHERE backend_type = 'client backend' AND usename IS DISTINCT FROM current_user),
    'prepared_transaction_seconds', (
        SELECT coalesce(max(extract(epoch FROM clock_timestamp() - prepared)), 0) FROM pg_prepared_xacts),
    'transaction_age', (SELECT max(greatest(age(datfrozenxid), mxid_age(datminmxid))) FROM pg_database),
    'databases', (
        SELECT json_agg(d) FROM (
            SELECT d.datname AS name, numbackends, xact_commit, xact_rollback, blks_read, blks_hit, tup_returned, tup_fetched,
                tup_inserted, tup_updated, tup_deleted, conflicts, temp_files, temp_bytes, deadlocks,
                age(d.datfrozenxid) AS transaction_age
            FROM pg_database d JOIN pg_stat_database s ON s.datid = d.oid
            WHERE d.datallowconn ORDER BY d.oid LIMIT 50) d),
    'slots', (
        SELECT json_agg(s) FROM (
            SELECT slot_name AS name, slot_type AS type, active, wal_status, safe_wal_size,
                pg_wal_lsn_diff({wal_source}, restart_lsn)::bigint AS retained_bytes
            FROM pg_replication_slots ORDER BY slot_name LIMIT 50) s),
    'standbys', (
        SELECT json_agg(s) FROM (
            SELECT application_name, coalesce(client_addr::text, '') AS client_addr, coalesce(state, '') AS state,
                pg_wal_lsn_diff({wal_source}, replay_lsn)::bigint AS lag_bytes,
                extract(epoch FROM replay_lag) AS lag_seconds
            FROM pg_stat_replication ORDER BY pid LIMIT 50) s),
    'archive_mode', current_setting('archive_mode'),
    'archiver', (
        SELECT json_build_object('archived_count', archived_count, 'failed_count', failed_count,
            'last_archived_at', extract(epoch FROM last_archived_time), 'last_failed_at', extract(epoch FROM last_failed_time))
        FROM pg_stat_archiver),
    'wal', (SELECT json_build_object('records', wal_records, 'bytes', wal_bytes) FROM pg_stat_wal),
    'checkpoints', ({checkpoints}),
    'settings', json_build_object(
        'shared_buffers_bytes', pg_size_bytes(current_setting('shared_buffers')),
        'effective_cache_size_bytes', pg_size_bytes(current_setting('effective_cache_size')),
        'maintenance_work_mem_bytes', pg_size_bytes(current_setting('maintenance_work_mem')),
        'work_mem_bytes', pg_size_bytes(current_setting('work_mem')),
        'max_wal_size_bytes', pg_size_bytes(current_setting('max_wal_size')),
        'max_connections', current_setting('max_connections')::bigint,
        'max_worker_processes', current_setting('max_worker_processes')::bigint,
        'autovacuum_max_workers', current_setting('autovacuum_max_workers')::bigint,
        'autovacuum_freeze_max_age', current_setting('autovacuum_freeze_max_age')::bigint),
    'volume', CASE WHEN $1 <> '' THEN pg_read_file($1, 0, 1000, true) END
)::text
