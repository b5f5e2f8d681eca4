# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_tonk_relay_global_optspecs
    string join \n config= check-config print-config h/help V/version
end

function __fish_tonk_relay_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_tonk_relay_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_tonk_relay_using_subcommand
    set -l cmd (__fish_tonk_relay_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c tonk-relay -n "__fish_tonk_relay_needs_command" -l config -d 'The config file' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_needs_command" -l check-config -d 'Check the config and the files that it names, print every fault and warning, and exit with 0 or 78'
complete -c tonk-relay -n "__fish_tonk_relay_needs_command" -l print-config -d 'Print the values in effect, and where each of them comes from'
complete -c tonk-relay -n "__fish_tonk_relay_needs_command" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_needs_command" -s V -l version -d 'Print version'
complete -c tonk-relay -n "__fish_tonk_relay_needs_command" -a "demo" -d 'Start a relay to try, with a small bundle of its own and everything in one folder'
complete -c tonk-relay -n "__fish_tonk_relay_needs_command" -a "status" -d 'Show the state of the running relay: readiness, clients, disk, memory, sign-in, certificate, last backup, quarantine. Exit code: 0 it is ready, 1 it is not ready or does not run, 78 the config names no socket'
complete -c tonk-relay -n "__fish_tonk_relay_needs_command" -a "top" -d 'Show the documents and sessions that used the most resources of the running relay in the last minute'
complete -c tonk-relay -n "__fish_tonk_relay_needs_command" -a "ping" -d 'Connect to a relay as a client does, and check each step: address, TLS, upgrade through proxies, round trip, large messages, idle time'
complete -c tonk-relay -n "__fish_tonk_relay_needs_command" -a "client" -d 'Make or open a document on a relay or any other automerge-repo server, show it, and change it'
complete -c tonk-relay -n "__fish_tonk_relay_needs_command" -a "reload" -d 'Have the running relay reload its config file, tokens and keys'
complete -c tonk-relay -n "__fish_tonk_relay_needs_command" -a "token" -d 'Add, list and remove the tokens that clients sign in with'
complete -c tonk-relay -n "__fish_tonk_relay_needs_command" -a "checkpoint" -d 'Move all chunks from the journal into the folders of the documents, whether or not the relay is running'
complete -c tonk-relay -n "__fish_tonk_relay_needs_command" -a "doc" -d 'Show, delete or block a document, whether or not the relay is running'
complete -c tonk-relay -n "__fish_tonk_relay_needs_command" -a "cluster" -d 'Make the database of a relay that keeps its documents in PostgreSQL, and show it'
complete -c tonk-relay -n "__fish_tonk_relay_needs_command" -a "fsck" -d 'Check everything that is stored, whether or not the relay is running. Exit code: 0 no damage, 1 all damage repaired, 4 damage is left, 8 the check is incomplete'
complete -c tonk-relay -n "__fish_tonk_relay_needs_command" -a "quarantine" -d 'List, release or delete stored chunks that do not parse and were moved to quarantine'
complete -c tonk-relay -n "__fish_tonk_relay_needs_command" -a "backup" -d 'Back up everything that is stored to a folder, whether or not the relay is running. Later backups copy only what has changed'
complete -c tonk-relay -n "__fish_tonk_relay_needs_command" -a "restore" -d 'Restore a backup'
complete -c tonk-relay -n "__fish_tonk_relay_needs_command" -a "import" -d 'Import the documents of another relay\'s storage folder, which is not changed'
complete -c tonk-relay -n "__fish_tonk_relay_needs_command" -a "export" -d 'Write the current documents of an app into a .tonk bundle. Exit code: 0 the bundle is complete, 1 a referenced document is missing or damaged'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand demo" -l bundle -d 'Serve this bundle instead' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand demo" -l folder -d 'Where documents, bundles and the admin socket go' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand demo" -l listen -d 'Where to listen' -r
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand demo" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand status" -l config -d 'The config file of the relay, which names its admin socket' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand status" -l socket -d 'Connect to this admin socket instead of the one in the config file' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand status" -l json -d 'Print JSON'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand status" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand top" -l config -d 'The config file of the relay, which names its admin socket' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand top" -l socket -d 'Connect to this admin socket instead of the one in the config file' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand top" -l once -d 'Print once instead of refreshing the terminal'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand top" -l json -d 'Print JSON'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand top" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand ping" -l token-file -d 'A file with the token to sign in with' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand ping" -l ca-file -d 'A file with certificates (PEM) to trust in addition to the system\'s: of an authority, or the server\'s own' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand ping" -l largest -d 'The largest message to send from one client to the other' -r
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand ping" -l silence -d 'How long to send nothing, to see whether a proxy or firewall cuts idle connections; 0s to skip this' -r
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand ping" -l insecure -d 'Accept any certificate, such as a self-signed one. The connection may be with anybody: use it without a token, or with one that you then revoke'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand ping" -l json -d 'Print JSON, at the end'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand ping" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand client; and not __fish_seen_subcommand_from new open" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand client; and not __fish_seen_subcommand_from new open" -f -a "new" -d 'Make a document, print its id, and go on as `open` does'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand client; and not __fish_seen_subcommand_from new open" -f -a "open" -d 'Show a document as JSON each time it changes, who else is there, and whether it is saved; typed lines change it'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand client; and __fish_seen_subcommand_from new" -l url -d 'The server: ws:// or wss://' -r
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand client; and __fish_seen_subcommand_from new" -l token-file -d 'A file with the token to sign in with' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand client; and __fish_seen_subcommand_from new" -l ca-file -d 'A file with certificates (PEM) to trust in addition to the system\'s: of an authority, or the server\'s own' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand client; and __fish_seen_subcommand_from new" -l name -d 'The name that others see; your user name if it is not given' -r
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand client; and __fish_seen_subcommand_from new" -l insecure -d 'Accept any certificate, such as a self-signed one. The connection may be with anybody: use it without a token, or with one that you then revoke'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand client; and __fish_seen_subcommand_from new" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand client; and __fish_seen_subcommand_from open" -l url -d 'The server: ws:// or wss://' -r
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand client; and __fish_seen_subcommand_from open" -l token-file -d 'A file with the token to sign in with' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand client; and __fish_seen_subcommand_from open" -l ca-file -d 'A file with certificates (PEM) to trust in addition to the system\'s: of an authority, or the server\'s own' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand client; and __fish_seen_subcommand_from open" -l name -d 'The name that others see; your user name if it is not given' -r
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand client; and __fish_seen_subcommand_from open" -l insecure -d 'Accept any certificate, such as a self-signed one. The connection may be with anybody: use it without a token, or with one that you then revoke'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand client; and __fish_seen_subcommand_from open" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand reload" -l config -d 'The config file of the relay, which names its admin socket' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand reload" -l socket -d 'Connect to this admin socket instead of the one in the config file' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand reload" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand token; and not __fish_seen_subcommand_from add list remove" -l config -d 'The config file, which names the file of tokens' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand token; and not __fish_seen_subcommand_from add list remove" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand token; and not __fish_seen_subcommand_from add list remove" -f -a "add" -d 'Create a token and print it. Only its hash is stored, so it cannot be shown again. In a file it takes effect after `tonk-relay reload`, in a database at once'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand token; and not __fish_seen_subcommand_from add list remove" -f -a "list" -d 'List the tokens, with when each was last used'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand token; and not __fish_seen_subcommand_from add list remove" -f -a "remove" -d 'Remove tokens. Their sessions end with the next `tonk-relay reload`; those of a database at once'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand token; and __fish_seen_subcommand_from add" -l scope -d 'What the token allows: sync:read or sync:write, for one document with :<document id>; upload; download; admin' -r
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand token; and __fish_seen_subcommand_from add" -l expires -d 'How long the token is valid, such as 90d; without this, it does not expire' -r
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand token; and __fish_seen_subcommand_from add" -l config -d 'The config file, which names the file of tokens' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand token; and __fish_seen_subcommand_from add" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand token; and __fish_seen_subcommand_from list" -l config -d 'The config file, which names the file of tokens' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand token; and __fish_seen_subcommand_from list" -l json -d 'Print JSON'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand token; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand token; and __fish_seen_subcommand_from remove" -l config -d 'The config file, which names the file of tokens' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand token; and __fish_seen_subcommand_from remove" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand checkpoint" -l config -d 'The config file of the relay, which names its admin socket' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand checkpoint" -l socket -d 'Connect to this admin socket instead of the one in the config file' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand checkpoint" -l json -d 'Print JSON'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand checkpoint" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and not __fish_seen_subcommand_from delete undelete block blocked unblock" -l config -d 'The config file of the relay, which names its admin socket' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and not __fish_seen_subcommand_from delete undelete block blocked unblock" -l socket -d 'Connect to this admin socket instead of the one in the config file' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and not __fish_seen_subcommand_from delete undelete block blocked unblock" -l follow -d 'Print what happens to the document in the running relay from now on: who sends what, and whether it is applied or refused and why. Contents are never printed'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and not __fish_seen_subcommand_from delete undelete block blocked unblock" -l json -d 'Print JSON'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and not __fish_seen_subcommand_from delete undelete block blocked unblock" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and not __fish_seen_subcommand_from delete undelete block blocked unblock" -a "delete" -d 'Delete a document permanently. Clients cannot upload it again until it is undeleted'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and not __fish_seen_subcommand_from delete undelete block blocked unblock" -a "undelete" -d 'Remove a document\'s tombstone so that clients can upload it again. Deleted data is not restored'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and not __fish_seen_subcommand_from delete undelete block blocked unblock" -a "block" -d 'Block all access to a document, at once and until it is unblocked. Its data is kept'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and not __fish_seen_subcommand_from delete undelete block blocked unblock" -a "blocked" -d 'List the blocked documents, with the time and reason of each block'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and not __fish_seen_subcommand_from delete undelete block blocked unblock" -a "unblock" -d 'Allow access to a blocked document again'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and __fish_seen_subcommand_from delete" -l reason -d 'The reason, which is stored with the tombstone' -r
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and __fish_seen_subcommand_from delete" -l config -d 'The config file of the relay, which names its admin socket' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and __fish_seen_subcommand_from delete" -l socket -d 'Connect to this admin socket instead of the one in the config file' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and __fish_seen_subcommand_from delete" -l json -d 'Print JSON'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and __fish_seen_subcommand_from delete" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and __fish_seen_subcommand_from undelete" -l config -d 'The config file of the relay, which names its admin socket' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and __fish_seen_subcommand_from undelete" -l socket -d 'Connect to this admin socket instead of the one in the config file' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and __fish_seen_subcommand_from undelete" -l json -d 'Print JSON'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and __fish_seen_subcommand_from undelete" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and __fish_seen_subcommand_from block" -l reason -d 'The reason, which is stored with the block' -r
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and __fish_seen_subcommand_from block" -l config -d 'The config file of the relay, which names its admin socket' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and __fish_seen_subcommand_from block" -l socket -d 'Connect to this admin socket instead of the one in the config file' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and __fish_seen_subcommand_from block" -l json -d 'Print JSON'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and __fish_seen_subcommand_from block" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and __fish_seen_subcommand_from blocked" -l config -d 'The config file of the relay, which names its admin socket' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and __fish_seen_subcommand_from blocked" -l socket -d 'Connect to this admin socket instead of the one in the config file' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and __fish_seen_subcommand_from blocked" -l json -d 'Print JSON'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and __fish_seen_subcommand_from blocked" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and __fish_seen_subcommand_from unblock" -l config -d 'The config file of the relay, which names its admin socket' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and __fish_seen_subcommand_from unblock" -l socket -d 'Connect to this admin socket instead of the one in the config file' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and __fish_seen_subcommand_from unblock" -l json -d 'Print JSON'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and __fish_seen_subcommand_from unblock" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand cluster; and not __fish_seen_subcommand_from init migrate status" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand cluster; and not __fish_seen_subcommand_from init migrate status" -f -a "init" -d 'Make the database that the config names: its roles, their rights and the relay\'s tables. Shows first what it will do, does only what is missing, and refuses a database with tables of others'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand cluster; and not __fish_seen_subcommand_from init migrate status" -f -a "migrate" -d 'Bring the relay\'s tables to the version of this program, before relays of this version start'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand cluster; and not __fish_seen_subcommand_from init migrate status" -f -a "status" -d 'Show the database: the server, how safe it is, its size, and what is amiss. Exit code: 0 nothing is amiss, 1 something is'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand cluster; and __fish_seen_subcommand_from init" -l config -d 'The config file of the relay, which names the database' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand cluster; and __fish_seen_subcommand_from init" -l admin -d 'Sign in to this database, as a role that may create others, such as postgres://postgres@db.example.org/postgres. Without this, at a Unix socket, as the user postgres' -r
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand cluster; and __fish_seen_subcommand_from init" -l admin-password-file -d 'A file with the password of that role' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand cluster; and __fish_seen_subcommand_from init" -l yes -d 'Do it without asking'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand cluster; and __fish_seen_subcommand_from init" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand cluster; and __fish_seen_subcommand_from migrate" -l config -d 'The config file of the relay, which names the database' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand cluster; and __fish_seen_subcommand_from migrate" -l admin -d 'Sign in to this database, as a role that may create others, such as postgres://postgres@db.example.org/postgres. Without this, at a Unix socket, as the user postgres' -r
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand cluster; and __fish_seen_subcommand_from migrate" -l admin-password-file -d 'A file with the password of that role' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand cluster; and __fish_seen_subcommand_from migrate" -l yes -d 'Do it without asking'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand cluster; and __fish_seen_subcommand_from migrate" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand cluster; and __fish_seen_subcommand_from status" -l config -d 'The config file of the relay, which names the database' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand cluster; and __fish_seen_subcommand_from status" -l json -d 'Print JSON'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand cluster; and __fish_seen_subcommand_from status" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand fsck" -l config -d 'The config file of the relay, which names its admin socket' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand fsck" -l socket -d 'Connect to this admin socket instead of the one in the config file' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand fsck" -l repair -d 'Move chunks that do not parse to quarantine, and delete what is left of deleted documents'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand fsck" -l json -d 'Print JSON'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand fsck" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand quarantine; and not __fish_seen_subcommand_from list release purge" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand quarantine; and not __fish_seen_subcommand_from list release purge" -f -a "list" -d 'List the entries, with the reason for each'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand quarantine; and not __fish_seen_subcommand_from list release purge" -f -a "release" -d 'Put chunks that parse back into their documents'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand quarantine; and not __fish_seen_subcommand_from list release purge" -f -a "purge" -d 'Delete entries permanently'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand quarantine; and __fish_seen_subcommand_from list" -l config -d 'The config file of the relay, which names its admin socket' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand quarantine; and __fish_seen_subcommand_from list" -l socket -d 'Connect to this admin socket instead of the one in the config file' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand quarantine; and __fish_seen_subcommand_from list" -l json -d 'Print JSON'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand quarantine; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand quarantine; and __fish_seen_subcommand_from release" -l config -d 'The config file of the relay, which names its admin socket' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand quarantine; and __fish_seen_subcommand_from release" -l socket -d 'Connect to this admin socket instead of the one in the config file' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand quarantine; and __fish_seen_subcommand_from release" -l json -d 'Print JSON'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand quarantine; and __fish_seen_subcommand_from release" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand quarantine; and __fish_seen_subcommand_from purge" -l older-than -d 'Delete all entries that are older than this, such as 30d; 0s for all' -r
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand quarantine; and __fish_seen_subcommand_from purge" -l config -d 'The config file of the relay, which names its admin socket' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand quarantine; and __fish_seen_subcommand_from purge" -l socket -d 'Connect to this admin socket instead of the one in the config file' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand quarantine; and __fish_seen_subcommand_from purge" -l json -d 'Print JSON'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand quarantine; and __fish_seen_subcommand_from purge" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand backup" -l config -d 'The config file of the relay, which names its admin socket' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand backup" -l socket -d 'Connect to this admin socket instead of the one in the config file' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand backup" -l json -d 'Print JSON'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand backup" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand restore" -l config -d 'The config file of the relay, which names its admin socket' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand restore" -l socket -d 'Connect to this admin socket instead of the one in the config file' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand restore" -l replace -d 'Move the stored data aside first, with the relay stopped. Without this, the backup is merged with the stored data'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand restore" -l new-identity -d 'Do not adopt the backup\'s storage id, for a copy of a relay that stays in use'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand restore" -l unfinished -d 'Restore what an incomplete backup has'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand restore" -l json -d 'Print JSON'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand restore" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand import" -l config -d 'The config file of the relay, which names its admin socket' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand import" -l socket -d 'Connect to this admin socket instead of the one in the config file' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand import" -l dry-run -d 'Print what would be done, and change nothing'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand import" -l new-identity -d 'Do not adopt the folder\'s storage id, for a copy of a relay that stays in use'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand import" -l json -d 'Print JSON'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand import" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand export" -l config -d 'The config file of the relay, which names its admin socket' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand export" -l socket -d 'Connect to this admin socket instead of the one in the config file' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand export" -l force -d 'Overwrite an existing file'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand export" -l json -d 'Print JSON'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand export" -s h -l help -d 'Print help'
