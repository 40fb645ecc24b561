# What do start, stop and reconfigure share? (sourced by them, not run)

dir=/tmp/ien-slurm
marker=.ien-slurm
# Debian and Ubuntu keep daemons where a user's PATH often does not look.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

# A mistake of the person who typed: one line, exit status 2.
refuse() { say "$*"; exit 2; }

need_root() { [ "$(id -u)" = 0 ] || refuse "only root can start jobs as their owners (uid $(id -u) given): run it as root, e.g. in a container"; }

# Whether all these programs are there.
installed() {
    local program
    for program; do command -v "$program" >/dev/null || return 1; done
}

need_value() { [ "$2" -ge 2 ] || refuse "$1 needs a value: type $1 DIR"; }

# Sockets live below DIR and may have 107 characters in all; the alphabet is one that no configuration file misreads.
set_dir() {
    dir=${1%/}
    [[ $dir =~ ^/[A-Za-z0-9/._-]{1,59}$ && ! $dir =~ (^|/)\.\.?(/|$) ]] ||
        refuse "--dir '$1' is not allowed: give an absolute path of at most 60 letters, digits and / . _ -"
    [ ! -e "$dir" ] || [ -d "$dir" ] || refuse "--dir '$1' is not a folder: give another one"
    [ ! -d "$dir" ] || [ -e "$dir/$marker" ] || [ -z "$(ls -A "$dir")" ] ||
        refuse "--dir '$1' holds something else already: give an empty or a new folder"
}

# The commands must talk to this cluster, whatever the caller's environment points at.
use_cluster() {
    local name
    for name in $(compgen -e | grep -E '^(SLURM|SBATCH|SQUEUE|SCANCEL|SINFO|SACCT)_' || true); do unset "$name"; done
    export SLURM_CONF=$dir/slurm.conf
}

# One at a time on one folder. Daemons are started with 9<&- so that none of them keeps the lock.
lock_dir() {
    exec 9<"$dir"
    flock -w 120 9 || { say "another start or stop has been at work on $dir for two minutes"; exit 1; }
}

# The name in a daemon's environment by which stop finds it, and all that it has started, again.
launch() { IEN_SLURM_CLUSTER=$dir "$@" </dev/null 9<&-; }

# The controller's own settings: send-user-signal or plain.
write_controller_conf() {
    if [ "$1" = send-user-signal ]; then
        echo "SlurmctldParameters=preempt_send_user_signal"
    else
        echo "# SlurmctldParameters: none"
    fi >"$dir/controller.conf"
}

# Ids of the processes of this cluster.
processes() { daemons && steps && tasks; }

# They carry what launch gives them.
daemons() { with_variable "IEN_SLURM_CLUSTER=$dir" | process_ids; }

# A slurmstepd writes its title over its environment, but it keeps its node's log open.
steps() {
    local comm
    { grep -lx slurmstepd /proc/[0-9]*/comm 2>/dev/null || true; } | while read -r comm; do
        [[ $(readlink "${comm%comm}"fd/*) != *"$dir/log/slurmd-"* ]] || echo "$comm"
    done | process_ids
}

# Tasks and batch scripts carry their owner's environment.
tasks() { with_variable "SLURM_CONF=$dir/slurm.conf" | { xargs -r grep -lzE '^SLURM_JOB_ID=' 2>/dev/null || true; } | process_ids; }

# Processes come and go while one looks.
with_variable() { grep -lzxF "$1" /proc/[0-9]*/environ 2>/dev/null || true; }

# From files below /proc to ids; never this script or those who called it.
process_ids() {
    local file ours=" " pid=$BASHPID
    while [ "$pid" -gt 1 ]; do
        ours+="$pid "
        pid=$(sed -n 's/^PPid:\t//p' "/proc/$pid/status")
    done
    while read -r file; do
        pid=${file#/proc/} pid=${pid%%/*}
        [[ $ours == *" $pid "* || ! -e /proc/$pid/exe ]] || echo "$pid"
    done
}

# Its daemons live and its controller answers. Without the file the Slurm commands would look for a server in the DNS, for a
# minute.
running() {
    local name
    for name in slurmctld slurmd-n1 slurmd-n2; do
        [ -s "$dir/run/$name.pid" ] && grep -qzxF "IEN_SLURM_CLUSTER=$dir" "/proc/$(cat "$dir/run/$name.pid")/environ" 2>/dev/null ||
            return 1
    done
    [ -e "$dir/slurm.conf" ] && timeout 20 scontrol ping >/dev/null 2>&1
}

nodes_idle() { nodes_in idle; }

nodes_in() { [ "$(timeout 20 sinfo -h -N -p low -t "$1" -o %N 2>/dev/null | wc -l)" = 2 ]; }

# wait_until SECONDS COMMAND...: status 1 when the command has not succeeded by then.
wait_until() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$end" ] || return 1
        sleep 0.2
    done
}

# fail WHAT LOG...: the ends of the logs, then exit status 1.
fail() {
    local log what=$1
    shift
    for log in "$@"; do
        [ ! -s "$log" ] || { echo "--- the end of $log" && tail -n 15 "$log"; } >&2
    done
    say "$what"
    exit 1
}
