# Runs in a box: tests the rpm, as far as possible without Fedora's own tools.
. ./checks.sh
old=$(printf '%s\n' tonk-relay-*.rpm | head -1)
new=$(printf '%s\n' tonk-relay-*.rpm | tail -1)

# Dependencies have the names that Fedora uses.
check 'it installs' rpm --install --nodeps "$old"
check 'its user is there' id tonk-relay
check 'its config is one' says '^/etc/tonk-relay.toml$' rpm --query --configfiles tonk-relay
systemctl daemon-reload
check 'it starts' systemctl start tonk-relay
check 'it is ready' says '^ok$' curl --silent http://127.0.0.1:8081/readyz
echo '[http]' > /etc/tonk-relay/d.toml
echo 'listen = ["127.0.0.1:8094"]' >> /etc/tonk-relay/d.toml
check 'an instance starts' systemctl enable --now tonk-relay@d
pid() { systemctl show --property MainPID --value tonk-relay@d; }
before=$(pid)
sed -i 's/^#idle_unload = .*/idle_unload = "5m"/' /etc/tonk-relay.toml
check 'it is upgraded' rpm --upgrade --nodeps "$new"
check 'which restarts the instance' fails says "^\(0\|$before\)$" pid
check 'with the config that was edited' grep -q '^idle_unload' /etc/tonk-relay.toml
check 'it starts as the new version' systemctl restart tonk-relay
check 'it is removed, and says where documents are' says 'stay in /var/lib/tonk-relay' rpm --erase --nodeps tonk-relay
check 'the instance is stopped' says '^inactive$' systemctl is-active tonk-relay@d
check 'and no link to its unit stays' fails ls -l /etc/systemd/system/multi-user.target.wants/tonk-relay@d.service
check 'its config stays' test -f /etc/tonk-relay/d.toml
check 'the documents stay' test -d /var/lib/tonk-relay/documents
exit $failed
