#!/bin/bash
# Runs as a unit of a systemd that was booted for it (tests/deploy/systemd.rs): does with sendoff.service what an operator
# does, and writes what it sees to /out/seen, one `name value` a line.
set -u
sendoff=/opt/sendoff
seen() { echo "$1 ${*:2}" >>/out/seen; }
show() { systemctl show sendoff.service --property="$1" --value; }
ready() { "$sendoff" healthcheck >/dev/null 2>&1; }
until_ready() { for _ in $(seq 200); do ready && return; sleep 0.1; done; }

systemctl start sendoff.socket || seen failed "sendoff.socket does not start"
# Activated by its first client, which waits until it is there.
"$sendoff" send orders '{"id":1}' --key first >/dev/null && seen first-event accepted
seen active "$(show ActiveState)"
sleep 6 # a status line comes every five seconds
seen status "$(show StatusText)"
seen user "$([ "$(stat -c %u "/proc/$(show MainPID)")" != 0 ] && echo not-root)"
seen unix-socket "$(test -S /run/sendoff-ingest.sock && echo there)"
# Operators are required. Root is one, by the socket, although the unit has user ids of its own (PrivateUsers).
seen admin-socket "$(stat -c %a /run/sendoff/admin.sock)"
seen root-operates "$("$sendoff" pause nobody >/dev/null && "$sendoff" resume nobody >/dev/null && echo yes)"
seen another-user "$(setpriv --reuid 4321 --regid 4321 --clear-groups "$sendoff" pause orders 2>&1 | grep -q 'needs an operator' && echo refused)"
# The secret of a client is a file that only root can read. systemd hands it over.
token=/etc/sendoff/orders.token
seen known-client "$("$sendoff" send payroll '{}' --token-file $token 2>&1 | grep -q AccessDenied && echo refused for payroll)"

# Reload: applied, and still running.
pid=$(show MainPID)
sed -i 's/^level = .*/level = "warn"/' /etc/sendoff/sendoff.toml
systemctl reload sendoff.service && sleep 0.5
seen reloaded-same-process "$([ "$pid" = "$(show MainPID)" ] && echo yes)"
seen reloaded-level "$("$sendoff" status --json | sed -n 's/.*"log_level":"\([a-z]*\)".*/\1/p')"

# Restarts under a client that never pauses: none of its events may be refused.
(
  n=0
  while [ ! -e /tmp/enough ]; do
    n=$((n + 1))
    "$sendoff" send orders "{\"id\":\"loop-$n\"}" >/dev/null 2>>/out/refused && echo "$n" >>/tmp/accepted
  done
) &
for _ in 1 2 3; do systemctl restart sendoff.service; sleep 0.3; done
touch /tmp/enough && wait
seen loop-accepted "$(wc -l </tmp/accepted)"
seen loop-refused "$(grep -c . /out/refused)"
until_ready
seen kept "$("$sendoff" status --json | sed -n 's/.*"events":\([0-9]*\).*/\1/p')"

# A daemon that hangs is killed by the watchdog and comes back.
kill -STOP "$(show MainPID)"
for _ in $(seq 150); do [ "$(show NRestarts)" -ge 1 ] && break; sleep 0.1; done
until_ready
seen watchdog-restarts "$(show NRestarts)"
seen kept-after-kill "$("$sendoff" status --json | sed -n 's/.*"events":\([0-9]*\).*/\1/p')"

# A configuration that nobody can start with: systemd tries for ever, the socket survives it, and the repaired file is enough.
sed -i 's/^level = .*/level = "nonsense"/' /etc/sendoff/sendoff.toml
kill -KILL "$(show MainPID)"
"$sendoff" send orders '{"id":"late"}' >/dev/null 2>>/out/refused & # its connection starts the service, too
for _ in $(seq 300); do [ "$(show NRestarts)" -ge 8 ] && break; sleep 0.1; done
seen still-trying "$([ "$(show NRestarts)" -ge 8 ] && echo yes)"
seen socket-survives "$(systemctl show sendoff.socket --property=ActiveState --value)"
sed -i 's/^level = .*/level = "warn"/' /etc/sendoff/sendoff.toml
until_ready
seen repaired "$(ready && echo ready)"
# An end that was not asked for by `systemctl stop`, however orderly, is followed by a start.
pid=$(show MainPID)
kill -TERM "$pid"
for _ in $(seq 150); do [ "$(show MainPID)" != "$pid" ] && ready && break; sleep 0.1; done
seen started-again "$(ready && echo yes)"
seen private "$(stat -c %a /var/lib/private/sendoff) $(find /var/lib/private/sendoff -mindepth 1 -perm /077 | wc -l)"

# SIGTERM drains and ends well.
systemctl stop sendoff.socket sendoff.service
seen stopped "$(show Result)" "$(show ExecMainStatus)"

# A stop with a hand-off takes longer than TimeoutStopSec: the daemon asks for more time. Its receiver comes four seconds late.
mkdir -p /run/systemd/system/sendoff.service.d
printf '[Service]\nTimeoutStopSec=2\n' >/run/systemd/system/sendoff.service.d/stop.conf
printf '[handoff]\nto = "http://127.0.0.1:9999"\non_stop = "always"\nwithin = "20s"\n' >>/etc/sendoff/sendoff.toml
systemctl daemon-reload
systemctl start sendoff.socket sendoff.service
until_ready
stored() { sed -n 's/.*"events":\([0-9]*\).*/\1/p'; }
left=$("$sendoff" status --json | stored)
seen stop-timeout "$(show TimeoutStopUSec)"
systemctl stop sendoff.socket sendoff.service &
stopping=$!
sleep 4
(
  set -a
  . /etc/sendoff/environment
  exec "$sendoff" serve --state-dir /tmp/receiver --set listen.ingest=127.0.0.1:9999 --set listen.admin=127.0.0.1:9998 \
    --set handoff.receive=true --set lambda.region=eu-central-1 --set lambda.endpoint_url=http://127.0.0.1:9 2>>/out/receiver
) &
wait "$stopping"
seen handed-over "$(show Result)" "$(show ExecMainStatus)"
received=$("$sendoff" status --json --admin http://127.0.0.1:9998 | stored)
seen received-all "$([ "$left" -gt 0 ] && [ "$left" = "$received" ] && echo yes || echo "$received of $left")"
seen done yes
systemctl --force --force poweroff
