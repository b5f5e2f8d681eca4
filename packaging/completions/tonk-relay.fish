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
complete -c tonk-relay -n "__fish_tonk_relay_needs_command" -l check-config -d 'Check the config and what it names, print every fault, and exit with 0 or 78'
complete -c tonk-relay -n "__fish_tonk_relay_needs_command" -l print-config -d 'Print what is in effect, each key with where it comes from'
complete -c tonk-relay -n "__fish_tonk_relay_needs_command" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_needs_command" -s V -l version -d 'Print version'
complete -c tonk-relay -n "__fish_tonk_relay_needs_command" -a "demo" -d 'Start a relay to try, with a small bundle of its own and everything in one folder'
complete -c tonk-relay -n "__fish_tonk_relay_needs_command" -a "status" -d 'Ask the running relay how it is'
complete -c tonk-relay -n "__fish_tonk_relay_needs_command" -a "top" -d 'Say which documents and which sessions cost the running relay most in the last minute'
complete -c tonk-relay -n "__fish_tonk_relay_needs_command" -a "ping" -d 'Try the way to a relay as a client takes it: address, TLS, proxy, upgrade, round trip, large messages, silence'
complete -c tonk-relay -n "__fish_tonk_relay_needs_command" -a "client" -d 'Make or open a document on a relay or any other automerge-repo server, show it, and change it'
complete -c tonk-relay -n "__fish_tonk_relay_needs_command" -a "reload" -d 'Let the running relay take over its changed config file'
complete -c tonk-relay -n "__fish_tonk_relay_needs_command" -a "token" -d 'Make, list and remove the tokens that clients sign in with'
complete -c tonk-relay -n "__fish_tonk_relay_needs_command" -a "checkpoint" -d 'Move all that is stored into the documents\' folders, whether or not the relay runs'
complete -c tonk-relay -n "__fish_tonk_relay_needs_command" -a "doc" -d 'Say what is stored of a document, or delete it, whether or not the relay runs'
complete -c tonk-relay -n "__fish_tonk_relay_needs_command" -a "fsck" -d 'Check all that is stored, whether or not the relay runs: 0 all is well, 1 repaired, 4 damaged, 8 not checked'
complete -c tonk-relay -n "__fish_tonk_relay_needs_command" -a "quarantine" -d 'Look after what was put aside because it does not parse'
complete -c tonk-relay -n "__fish_tonk_relay_needs_command" -a "backup" -d 'Copy all that is stored into a folder, whether or not the relay runs; what has not changed is not copied again'
complete -c tonk-relay -n "__fish_tonk_relay_needs_command" -a "restore" -d 'Bring a backup back'
complete -c tonk-relay -n "__fish_tonk_relay_needs_command" -a "import" -d 'Take over the documents of another relay\'s folder, which stays as it is'
complete -c tonk-relay -n "__fish_tonk_relay_needs_command" -a "export" -d 'Write an app\'s documents as they are now into a .tonk bundle: 0 with all of them, 1 where one that is mentioned is not stored or not whole'
complete -c tonk-relay -n "__fish_tonk_relay_needs_command" -a "serve-storage" -d 'Serve what is stored to another command of ours'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand demo" -l bundle -d 'Serve this bundle instead' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand demo" -l folder -d 'Where documents, bundles and the admin socket go' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand demo" -l listen -d 'Where to listen' -r
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand demo" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand status" -l config -d 'The config file of the relay, which names its admin socket' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand status" -l socket -d 'The admin socket itself' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand status" -l json -d 'As JSON'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand status" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand top" -l config -d 'The config file of the relay, which names its admin socket' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand top" -l socket -d 'The admin socket itself' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand top" -l once -d 'Say it once, also on a terminal'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand top" -l json -d 'As JSON'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand top" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand ping" -l token-file -d 'A file with the token to sign in with' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand ping" -l ca-file -d 'A file with certificates (PEM) to trust besides the system\'s' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand ping" -l largest -d 'The largest message to send there and back' -r
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand ping" -l silence -d 'How long to say nothing, to see whether something on the way ends silent connections' -r
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand ping" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand client; and not __fish_seen_subcommand_from new open" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand client; and not __fish_seen_subcommand_from new open" -f -a "new" -d 'Make a document, print its id, and go on as `open` does'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand client; and not __fish_seen_subcommand_from new open" -f -a "open" -d 'Show a document as JSON each time it changes, who else is there, and whether it is saved; typed lines change it'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand client; and __fish_seen_subcommand_from new" -l url -d 'The server: ws:// or wss://' -r
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand client; and __fish_seen_subcommand_from new" -l token-file -d 'A file with the token to sign in with' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand client; and __fish_seen_subcommand_from new" -l ca-file -d 'A file with certificates (PEM) to trust besides the system\'s' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand client; and __fish_seen_subcommand_from new" -l name -d 'The name that others see; your user name if it is not given' -r
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand client; and __fish_seen_subcommand_from new" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand client; and __fish_seen_subcommand_from open" -l url -d 'The server: ws:// or wss://' -r
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand client; and __fish_seen_subcommand_from open" -l token-file -d 'A file with the token to sign in with' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand client; and __fish_seen_subcommand_from open" -l ca-file -d 'A file with certificates (PEM) to trust besides the system\'s' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand client; and __fish_seen_subcommand_from open" -l name -d 'The name that others see; your user name if it is not given' -r
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand client; and __fish_seen_subcommand_from open" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand reload" -l config -d 'The config file of the relay, which names its admin socket' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand reload" -l socket -d 'The admin socket itself' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand reload" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand token; and not __fish_seen_subcommand_from add list remove" -l config -d 'The config file, which names the file of tokens' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand token; and not __fish_seen_subcommand_from add list remove" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand token; and not __fish_seen_subcommand_from add list remove" -f -a "add" -d 'Make a token and print it, once: only its hash is kept. In effect after `tonk-relay reload`'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand token; and not __fish_seen_subcommand_from add list remove" -f -a "list" -d 'List the tokens, with when each was last used'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand token; and not __fish_seen_subcommand_from add list remove" -f -a "remove" -d 'Remove tokens. Sessions that they let in end with `tonk-relay reload`'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand token; and __fish_seen_subcommand_from add" -l scope -d 'What it is for: sync:read or sync:write, also with :<document id>; upload; download; admin' -r
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand token; and __fish_seen_subcommand_from add" -l expires -d 'How long it is good for, such as 90d; without, for ever' -r
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand token; and __fish_seen_subcommand_from add" -l config -d 'The config file, which names the file of tokens' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand token; and __fish_seen_subcommand_from add" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand token; and __fish_seen_subcommand_from list" -l config -d 'The config file, which names the file of tokens' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand token; and __fish_seen_subcommand_from list" -l json -d 'As JSON'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand token; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand token; and __fish_seen_subcommand_from remove" -l config -d 'The config file, which names the file of tokens' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand token; and __fish_seen_subcommand_from remove" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand checkpoint" -l config -d 'The config file of the relay, which names its admin socket' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand checkpoint" -l socket -d 'The admin socket itself' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand checkpoint" -l json -d 'As JSON'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand checkpoint" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and not __fish_seen_subcommand_from delete undelete block blocked unblock" -l config -d 'The config file of the relay, which names its admin socket' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and not __fish_seen_subcommand_from delete undelete block blocked unblock" -l socket -d 'The admin socket itself' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and not __fish_seen_subcommand_from delete undelete block blocked unblock" -l follow -d 'Say what happens to it from now on in the running relay: who sent what, and whether it was applied or refused and why; never what is in it'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and not __fish_seen_subcommand_from delete undelete block blocked unblock" -l json -d 'As JSON'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and not __fish_seen_subcommand_from delete undelete block blocked unblock" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and not __fish_seen_subcommand_from delete undelete block blocked unblock" -a "delete" -d 'Delete a document for good: nothing brings it back until it is undeleted'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and not __fish_seen_subcommand_from delete undelete block blocked unblock" -a "undelete" -d 'Let a deleted document be brought again; what was deleted does not come back by itself'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and not __fish_seen_subcommand_from delete undelete block blocked unblock" -a "block" -d 'Keep a document from everybody, at once and until it is unblocked; what is stored of it stays'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and not __fish_seen_subcommand_from delete undelete block blocked unblock" -a "blocked" -d 'Say which documents are blocked, since when and why'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and not __fish_seen_subcommand_from delete undelete block blocked unblock" -a "unblock" -d 'Let everybody have a blocked document again'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and __fish_seen_subcommand_from delete" -l reason -d 'Why; kept with the tombstone' -r
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and __fish_seen_subcommand_from delete" -l config -d 'The config file of the relay, which names its admin socket' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and __fish_seen_subcommand_from delete" -l socket -d 'The admin socket itself' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and __fish_seen_subcommand_from delete" -l json -d 'As JSON'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and __fish_seen_subcommand_from delete" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and __fish_seen_subcommand_from undelete" -l config -d 'The config file of the relay, which names its admin socket' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and __fish_seen_subcommand_from undelete" -l socket -d 'The admin socket itself' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and __fish_seen_subcommand_from undelete" -l json -d 'As JSON'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and __fish_seen_subcommand_from undelete" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and __fish_seen_subcommand_from block" -l reason -d 'Why; kept with the block' -r
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and __fish_seen_subcommand_from block" -l config -d 'The config file of the relay, which names its admin socket' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and __fish_seen_subcommand_from block" -l socket -d 'The admin socket itself' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and __fish_seen_subcommand_from block" -l json -d 'As JSON'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and __fish_seen_subcommand_from block" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and __fish_seen_subcommand_from blocked" -l config -d 'The config file of the relay, which names its admin socket' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and __fish_seen_subcommand_from blocked" -l socket -d 'The admin socket itself' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and __fish_seen_subcommand_from blocked" -l json -d 'As JSON'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and __fish_seen_subcommand_from blocked" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and __fish_seen_subcommand_from unblock" -l config -d 'The config file of the relay, which names its admin socket' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and __fish_seen_subcommand_from unblock" -l socket -d 'The admin socket itself' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and __fish_seen_subcommand_from unblock" -l json -d 'As JSON'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand doc; and __fish_seen_subcommand_from unblock" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand fsck" -l config -d 'The config file of the relay, which names its admin socket' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand fsck" -l socket -d 'The admin socket itself' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand fsck" -l repair -d 'Move what does not parse into quarantine, and delete what is left of deleted documents'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand fsck" -l json -d 'As JSON'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand fsck" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand quarantine; and not __fish_seen_subcommand_from list release purge" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand quarantine; and not __fish_seen_subcommand_from list release purge" -f -a "list" -d 'Name what is there, and why'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand quarantine; and not __fish_seen_subcommand_from list release purge" -f -a "release" -d 'Put chunks that parse back among the documents'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand quarantine; and not __fish_seen_subcommand_from list release purge" -f -a "purge" -d 'Delete entries for good'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand quarantine; and __fish_seen_subcommand_from list" -l config -d 'The config file of the relay, which names its admin socket' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand quarantine; and __fish_seen_subcommand_from list" -l socket -d 'The admin socket itself' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand quarantine; and __fish_seen_subcommand_from list" -l json -d 'As JSON'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand quarantine; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand quarantine; and __fish_seen_subcommand_from release" -l config -d 'The config file of the relay, which names its admin socket' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand quarantine; and __fish_seen_subcommand_from release" -l socket -d 'The admin socket itself' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand quarantine; and __fish_seen_subcommand_from release" -l json -d 'As JSON'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand quarantine; and __fish_seen_subcommand_from release" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand quarantine; and __fish_seen_subcommand_from purge" -l older-than -d 'All that are older than this, such as 30d; 0s for all' -r
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand quarantine; and __fish_seen_subcommand_from purge" -l config -d 'The config file of the relay, which names its admin socket' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand quarantine; and __fish_seen_subcommand_from purge" -l socket -d 'The admin socket itself' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand quarantine; and __fish_seen_subcommand_from purge" -l json -d 'As JSON'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand quarantine; and __fish_seen_subcommand_from purge" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand backup" -l config -d 'The config file of the relay, which names its admin socket' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand backup" -l socket -d 'The admin socket itself' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand backup" -l json -d 'As JSON'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand backup" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand restore" -l config -d 'The config file of the relay, which names its admin socket' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand restore" -l socket -d 'The admin socket itself' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand restore" -l replace -d 'Move what is stored now aside first, with the relay stopped; without this, the backup is merged with it'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand restore" -l new-identity -d 'Leave out the backup\'s storage id: for a copy, beside a relay that goes on'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand restore" -l unfinished -d 'Take what is there of a backup that was not finished'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand restore" -l json -d 'As JSON'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand restore" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand import" -l config -d 'The config file of the relay, which names its admin socket' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand import" -l socket -d 'The admin socket itself' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand import" -l dry-run -d 'Say what would be done, and do nothing'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand import" -l new-identity -d 'Leave out the folder\'s storage id: for a copy, beside a relay that goes on'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand import" -l json -d 'As JSON'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand import" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand export" -l config -d 'The config file of the relay, which names its admin socket' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand export" -l socket -d 'The admin socket itself' -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand export" -l force -d 'Write over a file that is there'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand export" -l json -d 'As JSON'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand export" -s h -l help -d 'Print help'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand serve-storage" -l config -r -F
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand serve-storage" -l repairs -d 'Make the folder if it is not there, and put a broken journal aside'
complete -c tonk-relay -n "__fish_tonk_relay_using_subcommand serve-storage" -s h -l help -d 'Print help'
