# Runs in a box: installs what is released, a package or the archive, and uses it as a new administrator does.
. ./checks.sh
version=$(cat version)
# The commands of a block of INSTALL.md, by its number.
block() { awk -v wanted="$1" '/^```sh$/ { n++; on = n == wanted; next } /^```$/ { on = 0 } on' INSTALL.md; }
asks() { curl --silent "http://127.0.0.1:8081$1"; }
ready() { says '^ok$' asks /readyz; }

case $(echo tonk-relay*) in
  *.deb) check 'it installs' dpkg -i tonk-relay*.deb ;;
  *.rpm)
    # Dependencies have the names that Fedora uses.
    check 'it installs' rpm --install --nodeps tonk-relay*.rpm
    systemctl daemon-reload
    check 'it starts' systemctl start tonk-relay
    ;;
  *.tar.gz)
    tar --extract --file tonk-relay*.tar.gz
    cd tonk-relay-*/ || exit 1
    bash -euc "$(block 1)" demo > /dev/null 2>&1 &
    check 'it can be tried' until_ 100 ready
    kill %1
    wait
    check 'it is installed as INSTALL.md says' bash -euxc "$(block 2)"
    ;;
esac
check 'it is ready' until_ 100 ready
check 'it runs as its own user' says '^tonk-relay$' stat --format=%U "/proc/$(systemctl show --property MainPID --value tonk-relay)"
check 'its version is right' says "^tonk-relay $version " tonk-relay status
check 'clients can talk through it' says '^round trip' tonk-relay ping ws://127.0.0.1:8081 --silence 0s
check 'its config has no fault' says 'no fault' tonk-relay --check-config
check 'the config is the whole one' grep -q '^#max_message' /etc/tonk-relay.toml
check 'it can be backed up' tonk-relay backup /var/backups/tonk-relay
check 'it stops' systemctl stop tonk-relay
check 'with all durable' says 'all documents are durable' journalctl --unit tonk-relay
case $PWD in
  */tonk-relay-*)
    check 'it is removed as INSTALL.md says' bash -euxc "$(block 3)"
    check 'nothing of it stays' fails ls -d /usr/bin/tonk-relay /usr/lib/systemd/system/tonk-relay* /etc/tonk-relay.toml
    check 'but the documents' test -d /var/lib/tonk-relay/documents
    ;;
esac
exit $failed
