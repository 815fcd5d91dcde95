# shellcheck shell=sh
# shellcheck disable=SC2034,SC2153,SC2154 # the variables are provision.sh's
# A part of provision.sh: the device's identity, and who may come over SSH.

check_access() {
    [ -z "$identity" ] || [ -z "$enroll" ] || bad_usage "--identity brings an identity, --enroll waits for one: one of them"
    if [ -n "$identity" ]; then
        for _part in "PRIVATE KEY" "BEGIN CERTIFICATE"; do
            grep -qs -e "$_part" "$identity" || die "$identity: expected key, certificate and authority in one file, found no $_part"
        done
    fi
    [ -n "$authorize" ] || return 0
    [ -f "$authorize" ] || die "no file $authorize: copy your public key here (~/.ssh/id_ed25519.pub)"
    if grep -q "PRIVATE KEY" "$authorize"; then die "$authorize is a private key: give the public one, whose name ends in .pub"; fi
    _others=$(grep -nvE "^[[:space:]]*(#|\$)|$A_KEY" "$authorize" | cut -d: -f1 | paste -sd, -)
    [ -z "$_others" ] || die "$authorize, line $_others: expected ssh-ed25519 AAAA... name, and no options before it: those are for $HOME_OF/.ssh/authorized_keys itself"
    _public_keys | grep -q . || die "$authorize holds no public key: expected lines such as: ssh-ed25519 AAAA... name"
}

A_KEY='^(ssh|ecdsa|sk)-[A-Za-z0-9@.-]+ AAAA'
_public_keys() { tr -d '\r' <"$authorize" | grep -E "$A_KEY" | awk '!seen[$2]++' || :; }

write_access() {
    if [ -n "$identity" ]; then
        make_folder "$HOME_OF/identity" 700 ferryman
        write_file "$HOME_OF/identity/identity.pem" 600 ferryman <"$identity"
    fi
    [ -n "$authorize" ] || return 0
    case $(getent passwd ferryman) in
    */sh) ;;
    *) run usermod --shell /bin/sh ferryman ;;
    esac
    make_folder "$HOME_OF/.ssh" 700 ferryman
    _keys=$HOME_OF/.ssh/authorized_keys
    # shellcheck disable=SC2016 # of the shell that runs as ferryman
    _now=$(as_user ferryman timeout 10 sh -c '[ ! -f "$1" ] || head -c 1000000 -- "$1"' sh "$_keys") || die "ferryman cannot read $_keys: see what it is, and remove it"
    # Commands and files, but no terminal and no forwarding. A key that is there keeps what stands before it.
    _now=$(
        [ -z "$_now" ] || say "$_now"
        _public_keys | while IFS=' ' read -r _kind _key _name; do
            say "$_now" | tr ' ' '\n' | grep -qxF -e "$_key" || say "restrict $_kind $_key $_name"
        done
    )
    write_file "$_keys" 600 ferryman <<END
$_now
END
}

# _setting NAME: as the agent has it.
_setting() { sed -n "s/^$1=//p" "$SETTINGS/agent.env" | tr -d '"'; }

# What a host in this network reaches this device by: its name where it is announced, or its address.
_address() {
    if [ -d "${AVAHI%/*}" ]; then
        say "$(uname -n | sed 's/[.].*//').local"
        return 0
    fi
    _found=$(ip -4 route get 1.0.0.0 2>/dev/null | sed -n 's/.* src \([^ ]*\).*/\1/p')
    say "${_found:-$(uname -n)}"
}

# Where a host reaches the broker of this device's agent: devices and hosts have a listener each where it is closed. Who
# logs in there is the device, so its password is nothing for the host.
_broker_of_hosts() {
    case $1 in
    mqtts://*)
        _host=${1#mqtts://} _host=${_host%%[/?]*} _host=${_host##*@}
        say "\"mqtts://$(say "$_host" | sed 's/:[0-9]*$//'):8884?ca=\$PWD/operator.pem&cert=\$PWD/operator.pem\""
        ;;
    *) say "$1" | sed 's#//.*@#//#' ;;
    esac
}

say_what_next() {
    [ -n "$CHANGED" ] && [ -z "$DRY_RUN" ] || return 0
    _name=$(_setting FERRYMAN_DEVICE)
    _broker=$(_setting FERRYMAN_BROKER)
    if [ -n "$authorize" ]; then
        _broker_option='' _note=''
        [ -z "$_broker" ] || _broker_option=" \\
    --broker $(_broker_of_hosts "$_broker")"
        case $_broker in mqtts://*) _note=" (operator.pem: ferryman ca client ca operator --role operator)" ;; esac
        say "On the host, if it does not know this device yet$_note:
ferryman devices add $_name --host $(_address) --user ferryman --command $LINK/bin/ferryman$_broker_option
ferryman devices trust $_name"
    fi
    if [ -n "$enroll" ] && [ ! -e "$HOME_OF/identity/identity.pem" ]; then
        say "The agent starts once this device has its identity. On the host: ferryman enroll $_name --ca ca${_broker:+ --broker $(say "$_broker" | sed 's#//.*@#//#')}
Without SSH, here: runuser -u ferryman -- $LINK/bin/ferryman identity request $_name -o /tmp/$_name.csr"
    fi
}
