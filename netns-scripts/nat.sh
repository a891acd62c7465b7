# shellcheck shell=bash
# The NATs of a lab: what a SPEC means, and how one is started, stopped, restarted and killed.
#
#   SPEC                             the NAT
#   PRESET[,--FLAG=VALUE…]           natbox --nat PRESET --FLAG=VALUE …     for example  symmetric,--ports=sequential
#                                    (--log-packets too: its lines go to the log; costly, so off unless asked for)
#   kernel[,random|,fully-random]    nftables masquerade behind a home router's firewall: unsolicited packets from
#                                    outside are dropped before the gateway's own stack sees them (ping is answered)
#   kernel-open[,…]                  masquerade alone: the gateway's own stack takes a stray packet and answers it, and
#                                    conntrack then holds that tuple, so that the next outbound packet is remapped
#                                    (as natbox does it: linux-open)
#   pasta | slirp4netns              what containers have: their TAP is the host's uplink, and each flow ends in a socket of
#                                    the gateway's; for one host behind each NAT (one-nat, two-nats)
#
# On disk, in STATE_ROOT/ID/nats/N1:  kind  spec  netns  address  wiring (natbox's arguments, one a line)  natbox (the
# program)  pid  log (its output)  control (its socket)

readonly DEFAULT_SPEC=home

declare -A SPECS=()    # NAT → SPEC from the command line; "default" is for all that are not named
declare -A NAT_SPEC=() # NAT → the SPEC it got

spec_kind() {
    case ${1%%,*} in
        kernel | kernel-open | pasta | slirp4netns) printf '%s\n' "${1%%,*}" ;;
        *) printf 'natbox\n' ;;
    esac
}

# family KIND: kinds of one family are wired alike.
family() {
    case $1 in
        kernel*) printf 'kernel\n' ;;
        pasta | slirp4netns) printf 'sockets\n' ;;
        *) printf 'natbox\n' ;;
    esac
}

# check_spec SPEC: fails with one line for what can be seen to be wrong without asking natbox.
check_spec() {
    local word words
    IFS=, read -ra words <<<"$1"
    [[ ${words[0]:-} =~ ^[a-z0-9][a-z0-9.-]*$ ]] || die "NAT '$1': a spec is PRESET[,--flag=value…] or kernel"
    for word in "${words[@]:1}"; do
        case $(family "$(spec_kind "$1")") in
            natbox) [[ $word == --?* ]] || die "NAT '$1': '$word' is no natbox flag (write --flag=value)" ;;
            kernel)
                [[ $word == random || $word == fully-random ]] || die "NAT '$1': '$word' is neither random nor fully-random"
                ;;
            sockets) die "NAT '$1': ${words[0]} takes no flags here" ;;
        esac
    done
}

# choose_nat NAME: which NAT the command line wants there.
choose_nat() {
    NAT_SPEC[$1]=${SPECS[$1]:-${SPECS[default]:-$DEFAULT_SPEC}}
    NAT_KIND[$1]=$(spec_kind "${NAT_SPEC[$1]}")
}

# record_nats: writes down every NAT of the topology, before any is started.
record_nats() {
    local name dir
    for name in "${NATS[@]}"; do
        dir=$LAB_DIR/nats/$name
        mkdir "$dir"
        printf '%s\n' "${NAT_KIND[$name]}" >"$dir/kind"
        printf '%s\n' "${NAT_SPEC[$name]}" >"$dir/spec"
        printf '%s\n' "$(netns_of "$name")" >"$dir/netns"
        printf '%s\n' "${NAT_ADDRESS[$name]}" >"$dir/address"
        printf '%s' "${NAT_WIRING[$name]}" >"$dir/wiring"
        printf '%s\n' "${NATBOX:-}" >"$dir/natbox"
        ((${#dir} < 99)) || die "$dir/control: too long for a socket; choose a shorter --id or NATBOX_LAB_STATE"
    done
}

# launch_nat DIR: starts it and doesn't wait.
launch_nat() {
    local dir=$1 words argv pid
    IFS=, read -ra words <"$dir/spec"
    mapfile -t argv <"$dir/wiring"
    case $(<"$dir/kind") in
        kernel*)
            kernel_nat "${words[@]}" | ip netns exec "$(<"$dir/netns")" nft -f -
            return
            ;;
        natbox) argv=("$(<"$dir/natbox")" "${argv[@]}" --nat "${words[0]}" "${words[@]:1}" --control "$dir/control") ;;
        pasta)
            # Nothing is forwarded inwards, as by any NAT.
            argv=(pasta --foreground --netns-only --runas "$(id -u)" --config-net --ns-ifname tun0
                --address "${argv[1]}" --netmask 24 --gateway "${argv[1]%.*}.1"
                --tcp-ports none --udp-ports none --tcp-ns none --udp-ns none --netns "/run/netns/${argv[0]}")
            ;;
        slirp4netns)
            argv=(slirp4netns --configure --mtu 65520 --cidr "${argv[1]%.*}.0/24" --disable-host-loopback
                --netns-type path "/run/netns/${argv[0]}" tun0)
            ;;
    esac
    # In a session of its own, so that Ctrl-C at a terminal reaches `lab`, which then takes things down in order.
    setsid ip netns exec "$(<"$dir/netns")" "${argv[@]}" </dev/null >>"$dir/log" 2>&1 &
    pid=$!
    write_process "$dir/pid" "$pid" || true # it may have failed already: await_nat tells why
}

nat_answers() {
    local host
    if [[ $(<"$1/kind") == natbox ]]; then
        "$(<"$1/natbox")" show --control "$1/control" --json >/dev/null 2>&1
    else
        host=$(head -n 1 "$1/wiring")
        [[ -n $(ip -n "$host" route show default dev tun0 2>/dev/null) ]]
    fi
}
answers_or_ended() { gone "$1/pid" || nat_answers "$1"; }

# await_nat DIR: returns once the NAT is at work.
await_nat() {
    local dir=$1 name=${1##*/} kind
    kind=$(<"$dir/kind")
    [[ $kind != kernel* ]] || return 0
    wait_until 10 answers_or_ended "$dir" || die "$name: $kind runs but isn't at work after 10 s: $(last_words "$dir")"
    if gone "$dir/pid"; then
        die "$name: $kind ended at once: $(last_words "$dir")"
    fi
}

# What it said last, for an error message.
last_words() {
    local line
    line=$(grep -v '^$' "$1/log" 2>/dev/null | tail -n 1)
    if [[ $(<"$1/kind") == natbox ]]; then line=${line:-it said nothing (is $(<"$1/natbox") a natbox?)}; fi
    printf '%s\n' "${line:-it said nothing}"
}

# kernel_nat KIND [FLAG]: the nftables rules.
kernel_nat() {
    cat <<RULES
table ip natbox_lab {
    chain postrouting {
        type nat hook postrouting priority srcnat
        oifname "eth0" masquerade ${2:-}
    }
RULES
    if [[ $1 == kernel ]]; then
        cat <<'RULES'
    chain input {
        type filter hook input priority filter
        iifname "eth0" ct state established,related accept
        iifname "eth0" icmp type echo-request accept
        iifname "eth0" drop
    }
    chain forward {
        type filter hook forward priority filter
        ct state invalid drop
        iifname "eth0" ct state new drop
    }
RULES
    fi
    printf '}\n'
}

# kernel_link DIR up|down: a kernel NAT is a whole router, so stopping it takes its uplink away. That also empties its
# table: masquerade forgets every connection of an interface that goes down. The default route goes too and comes back.
kernel_link() {
    local netns gateway
    netns=$(<"$1/netns")
    if [[ $2 == down ]]; then
        gateway=$(ip -n "$netns" route show default)
        if [[ -n $gateway ]]; then printf '%s\n' "$gateway" >"$1/route"; fi
        printf 'link set eth0 down\n' | ip -n "$netns" -batch -
    elif [[ -e $1/route ]]; then
        printf 'link set eth0 up\nroute replace %s\n' "$(<"$1/route")" | ip -n "$netns" -batch -
        rm "$1/route"
    fi
}

# stop_nat DIR TERM|KILL
stop_nat() {
    local dir=$1 pid
    if [[ $(<"$dir/kind") == kernel* ]]; then
        [[ ! -e $dir/route ]] || return 0
        kernel_link "$dir" down
        ip netns exec "$(<"$dir/netns")" nft delete table ip natbox_lab
    elif [[ $2 == TERM ]]; then
        end_process "$dir/pid"
    elif pid=$(running "$dir/pid"); then
        kill -KILL "$pid"
        wait_until 5 gone "$dir/pid" || die "${dir##*/}: process $pid survives SIGKILL"
    fi
}

# check_change DIR [SPEC]: dies unless the NAT can become that
check_change() {
    local name=${1##*/} kind
    [[ -n ${2:-} ]] || return 0
    kind=$(<"$1/kind")
    check_spec "$2"
    [[ $(family "$(spec_kind "$2")") == "$(family "$kind")" ]] ||
        die "$name: $kind and $(spec_kind "$2") are wired differently: bring up another lab for '$2'"
    [[ $kind != natbox ]] || check_words "$1" "$2"
}

# check_words DIR SPEC: dies with natbox's own line when it doesn't know a word of the spec. Nothing is started.
check_words() {
    local words argv said code=0
    IFS=, read -ra words <<<"$2"
    mapfile -t argv <"$1/wiring"
    argv=("$(<"$1/natbox")" "${argv[@]}" --nat "${words[0]}" "${words[@]:1}" --dry-run)
    said=$(ip netns exec "$(<"$1/netns")" "${argv[@]}" 2>&1 >/dev/null) || code=$?
    # 2 is for what is written wrongly; that its TUN is in use while it runs is no objection.
    ((code != 2)) || die "${1##*/}: $said"
}

# start_nat DIR [SPEC]
start_nat() {
    local dir=$1 name=${1##*/} kind
    kind=$(<"$dir/kind")
    if [[ -n ${2:-} ]]; then
        check_change "$dir" "$2"
        if [[ $kind != kernel* ]]; then
            ! running "$dir/pid" >/dev/null || die "$name runs already: 'lab nat $name restart $2'"
        fi
        printf '%s\n' "$2" >"$dir/spec"
        spec_kind "$2" >"$dir/kind"
    fi
    if [[ $kind != kernel* ]]; then
        if running "$dir/pid" >/dev/null; then return; fi
        launch_nat "$dir"
        await_nat "$dir"
    elif [[ -e $dir/route ]]; then
        launch_nat "$dir"
        kernel_link "$dir" up
    fi
}

# find_natbox: sets NATBOX to the program's path; builds it, as the person who called, when nobody named one.
find_natbox() { NATBOX=$(find_program natbox "${NATBOX:-}"); }

# find_program NAME [PATH [TARGET…]]: prints the path of a program of this workspace: the one that was named, or what cargo
# builds: the package's own, or these targets, of which it is one.
find_program() {
    local package=$1 named=${2:-} target=("${@:3}") root user=${SUDO_USER:-} home build program
    ((${#target[@]})) || target=(--bin "$package")
    if [[ -n $named ]]; then
        [[ -x $named && ! -d $named ]] || die "$package '$named' is no program that can be run"
        realpath "$named"
        return
    fi
    root=$(realpath "$SCRIPTS/..")
    build="cd $(printf %q "$root") && cargo build --quiet --workspace ${target[*]} \
        --message-format=json-render-diagnostics"
    if ((EUID == 0)) && [[ -n $user && $user != root ]]; then
        # sudo's PATH doesn't know the user's cargo, and root must not own files in his target directory.
        home=$(getent passwd "$user" | cut -d: -f6)
        program=$(runuser -u "$user" -- env HOME="$home" PATH="$home/.cargo/bin:$PATH" sh -c "$build" | executable_of "$package")
    else
        program=$(PATH="${HOME:-/root}/.cargo/bin:$PATH" sh -c "$build" | executable_of "$package")
    fi || die "can't build $package: see above (a Rust toolchain is needed: https://rustup.rs)"
    [[ -x $program ]] || die "cargo built $package but named no program"
    printf '%s\n' "$program"
}

# The path of the program in cargo's JSON.
executable_of() { sed -n 's/.*"executable":"\([^"]*\/'"$1"'\)".*/\1/p' | tail -n 1; }
