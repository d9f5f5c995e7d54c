-- What takes longer to find out, in one row of one text. What stands in braces is the version's.
SELECT json_build_object(
    'restart_pending', (
        SELECT json_agg(name) FROM (SELECT name FROM pg_settings WHERE pending_restart ORDER BY name LIMIT 50) n),
    'locks', (SELECT json_object_agg(mode, n) FROM (SELECT mode, count(*) AS n FROM pg_locks GROUP BY mode) l),
    'wal_files', (SELECT json_build_object('count', count(*), 'bytes', coalesce(sum(size), 0)) FROM pg_ls_waldir()),
    'collation_mismatches', ({collations}),
    'database_sizes', (
        SELECT json_agg(d) FROM (
            SELECT datname AS name, pg_database_size(oid) AS bytes FROM pg_database WHERE datallowconn ORDER BY oid LIMIT 50) d)
)::text
