#!/bin/sh
# The container's first process: makes the data directory, whole or not at all, then becomes the
# server. (The images' own entrypoint leaves the password in the server's environment, and half a
# data directory when it is killed, which the next start takes for a whole one.)
set -eu
umask 077
# A container's first process ignores what it doesn't handle: without this a pod that is deleted now would stay
# until its grace period is over.
trap 'exit 1' INT TERM

if [ ! -s "$PGDATA/PG_VERSION" ]; then
    # Fails if there is anything in it: nothing is ever made over what somebody may miss.
    [ ! -e "$PGDATA" ] || rmdir "$PGDATA"
    rm -rf "$PGDATA.new"
    mkdir -p "$(dirname "$PGDATA")"
    trap 'kill "$!"; wait "$!"; exit 1' INT TERM
    initdb --pgdata="$PGDATA.new" --username=toygres --auth=reject --encoding=UTF8 --locale=C.UTF-8 \
        --data-checksums --no-sync &
    wait "$!"
    trap 'exit 1' INT TERM
    printf "\n# Written by toygres; ALTER SYSTEM wins over it.\ninclude '/etc/toygres/config/postgresql.conf'\n" \
        >>"$PGDATA.new/postgresql.conf"
    # Everything at once, in place of initdb's file by file; and before the name that says it is whole.
    sync -f "$PGDATA.new"
    mv "$PGDATA.new" "$PGDATA"
    sync -f "$PGDATA"
fi

# Of a probe that was killed.
rm -f /tmp/volume.new

# What owners may ask for and has to be loaded at the start, where the image has it.
: >/tmp/preload.conf
libraries=$(dirname "$(command -v postgres)")/../lib
for folder in "$libraries" "$libraries/postgresql"; do
    if [ -e "$folder/pg_stat_statements.so" ]; then
        echo "shared_preload_libraries = 'pg_stat_statements'" >/tmp/preload.conf
    fi
done

readlink /etc/toygres/config/..data /etc/toygres/tls/..data >/tmp/loaded
# Who reaches the server, and how toygres reads its log: both hold from the first line on, and over ALTER SYSTEM.
exec postgres -c hba_file=/etc/toygres/config/pg_hba.conf -c password_encryption=scram-sha-256 \
    -c listen_addresses='*' -c unix_socket_directories=/var/run/postgresql -c unix_socket_permissions=0700 \
    -c ssl=on -c ssl_min_protocol_version=TLSv1.2 -c ssl_cert_file=/etc/toygres/tls/tls.crt \
    -c ssl_key_file=/etc/toygres/tls/tls.key -c ssl_ca_file=/etc/toygres/config/client-ca.crt \
    -c log_line_prefix='%m [%p] %e %b: ' -c log_timezone=UTC -c lc_messages=C \
    -c log_destination=stderr -c logging_collector=off
