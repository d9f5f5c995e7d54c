#!/bin/sh
# probe.sh startup|ready|live
answers() {
    pg_isready --quiet --host=/var/run/postgresql --timeout=3
}

case $1 in
startup)
    # Waits within the probe, so that a start isn't rounded up to the kubelet's next second.
    for _ in $(seq 100); do
        if answers; then exit 0; fi
        sleep 0.05
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
    ;;
live)
    # 1: it answers that it takes no connections yet, as during recovery.
    answers || [ $? -eq 1 ]
    ;;
esac
