# shellcheck shell=bash
# What a lab remembers of itself on disk, so that any later command can show it, use it or take it down.
#
#   STATE_ROOT/ID/topology      its name
#   STATE_ROOT/ID/hosts         a line for each host: NAME NAMESPACE ADDRESS[,ADDRESS…]
#   STATE_ROOT/ID/nats/N1/…     what nat.sh needs to stop, start and ask that NAT
#   STATE_ROOT/ID/creator       the `lab up` that makes it     (a process, see below)
#   STATE_ROOT/ID/owner         the process it lives for       (a process; absent: it lives until `lab down`)
#   STATE_ROOT/ID/holder        keeps a plain user's namespaces (a process; absent for root)
#   STATE_ROOT/ID/user          who brought it up
#   STATE_ROOT/ID/ready         there once `lab up` is through
#
# A process is written as "PID START": its pid and its start time in ticks since boot. The two together never name
# another process, so a pid that the kernel has given out again is never signalled.

die() {
    printf 'lab: %s\n' "$*" >&2
    exit 1
}

# Where this user's labs are written down. NATBOX_LAB_STATE overrides it (netns-lab sets it inside a user namespace,
# where everybody is uid 0).
find_state_root() {
    local parent
    if [[ -n ${NATBOX_LAB_STATE:-} ]]; then
        STATE_ROOT=$NATBOX_LAB_STATE
    elif ((EUID == 0)); then
        STATE_ROOT=/run/natbox-lab
    else
        parent=${XDG_RUNTIME_DIR:-}
        # XDG_RUNTIME_DIR is still the other user's after a `su`: then it is of no use.
        if [[ -z $parent || ! -O $parent || ! -w $parent ]]; then
            parent=/tmp/natbox-lab-$EUID
            (umask 077 && mkdir -p "$parent")
            [[ -O $parent && ! -L $parent ]] || die "$parent belongs to somebody else: remove it or set XDG_RUNTIME_DIR"
        fi
        STATE_ROOT=$parent/natbox-lab
    fi
    (umask 077 && mkdir -p "$STATE_ROOT") 2>/dev/null || die "can't make the state directory $STATE_ROOT"
}

# The person behind sudo, so that "mine" means the same with and without it.
invoking_user() { printf '%s\n' "${SUDO_USER:-$(id -un)}"; }

lab_ids() {
    local dir
    for dir in "$STATE_ROOT"/*/; do
        if [[ -d $dir ]]; then basename "$dir"; fi
    done
}

lab_exists() { [[ -n $1 && -d $STATE_ROOT/$1 && $1 != */* ]]; }

# The lab meant by a command that named none: the only one there is.
only_lab() {
    local ids
    mapfile -t ids < <(lab_ids)
    case ${#ids[@]} in
        0) die "no lab of yours is up: 'lab up one-nat' starts one (one that was started by sudo needs sudo)" ;;
        1) printf '%s\n' "${ids[0]}" ;;
        *) die "several labs are up (${ids[*]}): name the one you mean" ;;
    esac
}

# start_time PID: when the process started, in ticks since boot; fails when it is gone. A zombie is gone, unless it is
# only the first thread of a process: while another one is left, so are its files (a TUN, a guard).
start_time() {
    local stat tasks=("/proc/$1/task"/*)
    { stat=$(<"/proc/$1/stat"); } 2>/dev/null || return 1
    stat=${stat##*) } # the command name before it may hold spaces and brackets
    # shellcheck disable=SC2086 # fields are wanted
    set -- $stat
    [[ $1 == [ZX] ]] && ((${#tasks[@]} < 2)) && return 1
    printf '%s\n' "${20}"
}

# write_process FILE PID
write_process() {
    local start
    start=$(start_time "$2") || return 1
    printf '%s %s\n' "$2" "$start" >"$1"
}

# running FILE: prints the pid written in FILE if that very process still runs.
running() {
    local pid start
    { read -r pid start <"$1"; } 2>/dev/null || return 1
    [[ $(start_time "$pid") == "$start" ]] && printf '%s\n' "$pid"
}

# wait_until SECONDS COMMAND…: polls until COMMAND succeeds; fails at the deadline.
wait_until() {
    local deadline=$((${EPOCHREALTIME/[.,]/} + $1 * 1000000))
    shift
    until "$@"; do
        ((${EPOCHREALTIME/[.,]/} < deadline)) || return 1
        sleep 0.01
    done
}

gone() { ! running "$1" >/dev/null; }

# end_process FILE: asks the process to stop, insists after five seconds, and waits until it is gone.
end_process() {
    local pid
    pid=$(running "$1") || return 0
    kill -TERM "$pid" 2>/dev/null || true
    if ! wait_until 5 gone "$1"; then
        kill -KILL "$pid" 2>/dev/null || true
        wait_until 5 gone "$1" || die "process $pid doesn't end, even by SIGKILL"
    fi
}

# new_lab ID TOPOLOGY CREATOR OWNER: the directory appears whole, so that a `lab down --stale` at the same time never takes a lab
# in its first moment for one that died there.
new_lab() {
    local dir=$STATE_ROOT/.$1.$BASHPID
    mkdir "$dir" "$dir/nats" || die "can't write below $STATE_ROOT"
    printf '%s\n' "$2" >"$dir/topology"
    write_process "$dir/creator" "$3" || die "lab $1: its creator, process $3, is gone"
    if [[ $4 != none ]] && ! write_process "$dir/owner" "$4"; then
        rm -rf "$dir"
        die "--owner $4: no such process"
    fi
    invoking_user >"$dir/user"
    if ! mv -T "$dir" "$STATE_ROOT/$1" 2>/dev/null; then
        rm -rf "$dir"
        die "a lab named '$1' is up already: take it down with 'lab down $1', or choose another --id"
    fi
}

# What a new_lab that was killed left: a hidden directory whose name ends in its pid.
remove_half_written() {
    local dir
    for dir in "$STATE_ROOT"/.[!.]*; do
        if [[ -d $dir && ! -d /proc/${dir##*.} ]]; then rm -rf "$dir"; fi
    done
}

# A lab is stale when nobody is left who could want it: its owner is dead, or whatever made or held it died half way.
is_stale() {
    local dir=$STATE_ROOT/$1
    [[ -e $dir/owner ]] && gone "$dir/owner" && return 0
    [[ -e $dir/holder ]] && gone "$dir/holder" && return 0
    [[ ! -e $dir/ready ]] && gone "$dir/creator"
}

# A lab that lives for another process which still runs is that process's business.
has_live_owner() { [[ -e $STATE_ROOT/$1/owner ]] && ! gone "$STATE_ROOT/$1/owner"; }

# Where the lab's namespaces have names: /run/netns. A plain user's is seen through a process that lives in the lab.
netns_dir() {
    local file pid
    if ((EUID != 0)); then
        for file in "$STATE_ROOT/$1"/holder "$STATE_ROOT/$1"/nats/*/pid; do
            if pid=$(running "$file") && [[ -d /proc/$pid/root/run/netns ]]; then
                printf '/proc/%s/root/run/netns\n' "$pid"
                return
            fi
        done
    fi
    printf '/run/netns\n'
}

# lab_processes ID: pids of all processes inside the lab's namespaces, but for this command and its ancestors.
lab_processes() {
    local dir host netns inode path pid own=" "
    local -A ours=()
    dir=$(netns_dir "$1")
    while read -r host netns _; do
        if [[ -e $dir/$netns ]]; then ours[$(stat -L -c %i "$dir/$netns")]=$host; fi
    done <"$STATE_ROOT/$1/hosts"
    ((${#ours[@]})) || return 0

    pid=$$
    while ((pid > 1)); do
        own+="$pid "
        pid=$(sed -n 's/^PPid:\t//p' "/proc/$pid/status")
    done
    while read -r inode path; do
        pid=${path#/proc/}
        pid=${pid%/ns/net}
        if [[ -n ${ours[$inode]:-} && $own != *" $pid "* ]]; then printf '%s\n' "$pid"; fi
    done < <(stat -L -c '%i %n' /proc/[0-9]*/ns/net 2>/dev/null)
}

no_processes_in() { [[ -z $(lab_processes "$1") ]]; }

# remove_lab ID: idempotent; safe at any point of a lab's life, also half way through `lab up`.
remove_lab() {
    local id=$1 dir=$STATE_ROOT/$1 lock file pids netns
    lab_exists "$id" || return 0
    exec {lock}<"$dir" 2>/dev/null || return 0
    flock "$lock" # two `lab down` at once: the second finds nothing left to do
    if [[ -e $dir/hosts ]]; then
        for file in "$dir"/nats/*/pid; do
            if [[ -e $file ]]; then end_process "$file"; fi
        done
        mapfile -t pids < <(lab_processes "$id")
        if ((${#pids[@]})); then
            kill -TERM "${pids[@]}" 2>/dev/null || true
            if ! wait_until 2 no_processes_in "$id"; then
                mapfile -t pids < <(lab_processes "$id")
                kill -KILL "${pids[@]}" 2>/dev/null || true
                wait_until 5 no_processes_in "$id" || die "lab $id: processes don't end, even by SIGKILL: ${pids[*]}"
            fi
        fi
        # A plain user's namespaces have no name out here; they go with the last process in them.
        if ((EUID == 0)); then
            while read -r _ netns _; do
                if [[ -e /run/netns/$netns ]]; then printf 'netns del %s\n' "$netns"; fi
            done <"$dir/hosts" | ip -force -batch -
        fi
    fi
    if [[ -e $dir/holder ]]; then end_process "$dir/holder"; fi
    rm -rf "$dir"
    exec {lock}<&-
}
