# shellcheck shell=bash
# A plain user's lab: a user namespace in which he is root, with a network and a mount namespace of its own. A holder
# process keeps it alive between commands; every later command enters it by the holder's pid.

# hold_user_namespace ID: makes the namespace for a lab whose state directory exists.
hold_user_namespace() {
    local id=$1 dir=$STATE_ROOT/$1 said
    if ! said=$(unshare --user --map-root-user --net --mount true 2>&1); then
        die "this machine gives a plain user no namespaces (${said##*: }): use sudo," \
            "or allow them (sysctl kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)"
    fi
    # `ip netns` keeps its names in /run/netns, which only root may write: give the lab a /run of its own. The state
    # directory may lie below the real /run, so it is taken along through a descriptor.
    # shellcheck disable=SC2016 # expanded by the inner shell
    NATBOX_LAB_STATE=$STATE_ROOT setsid unshare --user --map-root-user --mount --net bash -euc '
        exec 9<"$NATBOX_LAB_STATE"
        mount -t tmpfs -o mode=755 natbox-lab /run
        mkdir -p "$NATBOX_LAB_STATE"
        mountpoint -q "$NATBOX_LAB_STATE" || mount -c --bind /proc/self/fd/9 "$NATBOX_LAB_STATE"
        exec 9<&-
        : >"$1/holding"
        exec sleep infinity
    ' holder "$dir" </dev/null >"$dir/holder.log" 2>&1 &
    local pid=$!
    write_process "$dir/holder" "$pid" || die "lab $id: its holder ended at once: $(<"$dir/holder.log")"
    wait_until 5 held_or_dead "$dir"
    [[ -e $dir/holding ]] || die "lab $id: can't set up its user namespace: $(tail -n 1 "$dir/holder.log")"
}

held_or_dead() { [[ -e $1/holding ]] || gone "$1/holder"; }

# enter_user_namespace ID ARGUMENT…: runs `lab ARGUMENT…` inside the lab's user namespace, in the same directory.
# Returns at once for a lab that has none.
enter_user_namespace() {
    local id=$1 pid
    shift
    [[ -e $STATE_ROOT/$id/holder && -z ${NATBOX_LAB_INSIDE:-} ]] || return 0
    pid=$(running "$STATE_ROOT/$id/holder") || die "lab $id is dead (its holder is gone): remove it with 'lab down $id'"
    exec nsenter --target "$pid" --user --mount --net --preserve-credentials -- \
        env -C "$PWD" NATBOX_LAB_INSIDE=1 NATBOX_LAB_STATE="$STATE_ROOT" "$LAB" "$@"
}
