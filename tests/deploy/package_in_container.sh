#!/bin/bash
# Runs as a unit of a systemd that was booted for it, on a throw-away copy of this machine's root (tests/deploy/package.rs):
# does with the package what an operator does, and writes what it sees to /out/seen, one `name value` a line.
set -u
seen() { echo "$1 ${*:2}" >>/out/seen; }
show() { systemctl show sendoff.service --property="$1" --value; }
until_ready() { for _ in $(seq 200); do sendoff healthcheck >/dev/null 2>&1 && return; sleep 0.1; done; }
events() { sendoff status --json | sed -n 's/.*"events":\([0-9]*\).*/\1/p'; }
install() { dpkg --force-depends --force-unsafe-io --install "$1"; }

# Images of build machines forbid packages to start services.
rm -f /usr/sbin/policy-rc.d
mkdir -p /etc/sendoff
printf 'AWS_ACCESS_KEY_ID=x\nAWS_SECRET_ACCESS_KEY=y\nAWS_REGION=eu-central-1\nAWS_EC2_METADATA_DISABLED=true\n' >/etc/sendoff/environment

install /opt/first.deb
until_ready
seen installed "$(show ActiveState)" "$(systemctl is-enabled sendoff.service)"
# Lambda is not there, so the event stays.
sendoff send orders '{"id":1}' --key first >/dev/null && seen accepted yes

echo '# own' >>/etc/sendoff/sendoff.toml
pid=$(show MainPID)
install /opt/second.deb
until_ready
seen upgraded "$(show ActiveState)" "$(dpkg-query --show --showformat '${Version}' sendoff)" \
  "$([ "$pid" != "$(show MainPID)" ] && echo another-process)" "$(events) event"
seen own-setting "$(grep -q '^# own' /etc/sendoff/sendoff.toml && echo kept)"

said=$(dpkg --remove sendoff)
echo "$said"
seen removed "$([ "$(show LoadState)" != loaded ] && echo no-unit)" "$(pgrep -x sendoff >/dev/null || echo no-process)"
seen outbox-after-removal "$([ -d /var/lib/private/sendoff ] && echo there), $(grep -q 'the outbox stays' <<<"$said" && echo said)"

install /opt/second.deb
until_ready
seen installed-again "$(show ActiveState)" "$(events) event"

said=$(dpkg --purge sendoff)
echo "$said"
seen purged "$([ ! -e /var/lib/private/sendoff ] && [ ! -e /var/lib/sendoff ] && echo no-outbox)" \
  "$([ ! -e /etc/sendoff ] && echo no-configuration), $(grep -q 'removing the outbox' <<<"$said" && echo said)"
left=$(find /etc /usr /var/lib -xdev -name '*sendoff*' 2>/dev/null)
seen left-over "${left:-nothing}"
seen done yes
systemctl --force --force poweroff
