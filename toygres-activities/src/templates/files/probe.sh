#!/bin/sh
# probe.sh startup|ready|live
answers() {
    pg_isready --quiet --host=/var/run/postgresql --timeout=3
}

case $1 in
startup)
    # Waits within the probe, so that a start isn't rounded up to the kubelet's next second. While
    # initdb is at work there is nobody to ask, and asking would only slow it down.
    for _ in $(seq 50); do
        if [ -s "$PGDATA/postmaster.pid" ] && answers; then exit 0; fi
        sleep 0.1
    done
    exit 1
    ;;
ready)
    answers || exit 1
    # The kubelet renews mounted files, a certificate above all; the server has to read them anew.
    now=$(readlink /etc/toygres/config/..data /etc/toygres/tls/..data)
    if [ "$now" != "$(cat /tmp/loaded)" ]; then
        kill -HUP 1
        printf '%s\n' "$now" >/tmp/loaded
    fi
    # How full the volume is, for toygres, which reads it over SQL. One that hangs is asked once.
    if [ ! -e /tmp/volume.new ]; then
        df -Pk "$PGDATA" >/tmp/volume.new && mv /tmp/volume.new /tmp/volume || rm -f /tmp/volume.new
    fi
    ;;
live)
    # 1: it answers that it takes no connections yet, as during recovery.
    answers || [ $? -eq 1 ]
    ;;
esac
