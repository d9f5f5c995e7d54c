-- What an instance on Kubernetes may be given, as it was asked for; NULL is the platform's default.
ALTER TABLE instances
    ADD COLUMN cpu           text,
    ADD COLUMN memory        text,
    ADD COLUMN storage_class text,
    -- Which cluster it runs on: the uid of its namespace kube-system. NULL where that isn't known.
    ADD COLUMN cluster_id    text;
