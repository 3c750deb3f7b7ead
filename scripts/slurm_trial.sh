#!/bin/bash
# A sweep by launcher=slurm, on a real Slurm of one node that this begins on the loopback address, ends as one without Slurm.
#
#   bash scripts/slurm_trial.sh DIR        as root, with Debian's slurm-wlm and munge: apt-get install slurm-wlm munge
#
# Four runs are one array. One of them is preempted (scontrol requeue), one gets SIGTERM, one comes to its time limit, and
# then the node fails and comes back. Exit code 0 where, in the end, every number and checkpoint is that of a local sweep.
# PYTHON is the interpreter that has metarun, python by default; STEPS are so many that the runs last some four minutes.
set -u
[[ $# -eq 1 ]] || { sed -n '4p' "$0"; exit 2; }
for command in munged slurmctld slurmd sbatch; do
  PATH=$PATH:/usr/sbin command -v $command > /dev/null || { echo "no $command here: apt-get install slurm-wlm munge"; exit 2; }
done
export PATH=$PATH:/usr/sbin PYTHON=${PYTHON:-python}
here=$(cd "$(dirname "$0")" && pwd)
export PYTHONPATH=$(dirname "$here")${PYTHONPATH:+:$PYTHONPATH} OMP_NUM_THREADS=1
mkdir -p "$1" && cd "$1" || exit 2
dir=$PWD slurm=$(mktemp -d) node=$(hostname -s) failed=0

say() { printf '%(%H:%M:%S)T  %s\n' -1 "$*"; }
check() { say "$1: $2"; [[ $2 == yes* ]] || failed=1; }

# ---- a Slurm of one node, which pretends to have four cores ----

begin_slurm() {
  mkdir "$slurm"/{state,spool}
  cat > "$slurm/slurm.conf" << EOF
ClusterName=trial
SlurmctldHost=$node(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$slurm/munge.socket
StateSaveLocation=$slurm/state
SlurmdSpoolDir=$slurm/spool
SlurmctldPidFile=$slurm/slurmctld.pid
SlurmdPidFile=$slurm/slurmd.pid
SlurmctldLogFile=$slurm/slurmctld.log
SlurmdLogFile=$slurm/slurmd.log
SlurmctldPort=26817
SlurmdPort=26818
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
MpiDefault=none
NodeName=$node NodeAddr=127.0.0.1 CPUs=4 RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
EOF
  export SLURM_CONF=$slurm/slurm.conf
  head -c 1024 /dev/urandom > "$slurm/munge.key" && chmod 400 "$slurm/munge.key"
  munged --force --key-file="$slurm/munge.key" --socket="$slurm/munge.socket" --pid-file="$slurm/munged.pid" \
    --log-file="$slurm/munged.log" --seed-file="$slurm/munge.seed" && slurmctld && sleep 1 && slurmd && sleep 2
  sinfo | grep -q idle || { tail "$slurm"/*.log; say "Slurm did not begin"; exit 1; }
}

end_slurm() {
  scancel --user=root 2> /dev/null
  sleep 3
  for name in slurmd slurmctld munged; do
    [[ -f $slurm/$name.pid ]] && kill "$(< "$slurm/$name.pid")" 2> /dev/null
  done
  cp "$slurm"/*.log "$dir" 2> /dev/null
  rm -rf "$slurm"
}

# ---- the sweep ----

words=(device=cpu execution=looped meta_batch_size=4 "base_learner.hidden=[16]" log_every=50 "logger=none"
  task.num_queries=5 evaluation.every=500 evaluation.num_val_tasks=8 evaluation.num_tasks=8
  steps="${STEPS:-8000}" seed=0,1 meta_learner=maml,reptile)
sweep() { "$PYTHON" -m metarun -m "${words[@]}" "$@"; }
by_slurm() { sweep sweep_dir=slurm launcher=slurm retries=20 launcher.time=10m launcher.warning=60; }
step() { "$PYTHON" -c 'import json, sys; print(json.load(open(sys.argv[1])).get("step", 0))' "$1/status.json" 2> /dev/null || echo 0; }
folder() { sed -n "s/^  $1) run=\([^;]*\);.*/\1/p" slurm/slurm/1.sh; }
state() { squeue --noheader --jobs="$1" --format=%T 2> /dev/null; }
until_trained() { # number of the task, steps
  for _ in $(seq 600); do (($(step "$(folder "$1")") >= $2)) && return; sleep 0.5; done
  say "task $1 does not get to step $2"; failed=1
}
restarts() { scontrol show job "$1" | grep -o 'Restarts=[0-9]*' | head -1; }

trap end_slurm EXIT
begin_slurm
say "$(sinfo --version): $(sinfo --noheader)"
by_slurm > submitted.txt 2>&1 || { cat submitted.txt; exit 1; }
job=$("$PYTHON" -c 'import json; print(json.load(open("slurm/slurm/1.json"))["job"])')
check "one array of four was submitted, and the command has ended" "$([[ -n $job ]] && echo yes, job "$job")"
by_slurm > again.txt 2>&1
check "the same command again submits nothing" "$(grep -q "4 runs are in Slurm's queue" again.txt && [[ ! -e slurm/slurm/2.sh ]] && echo yes || echo no)"

for task in 0 1 2 3; do until_trained $task 100; done
say "all four train, at steps $(for task in 0 1 2 3; do step "$(folder $task)"; done | xargs)"

say "preemption of task 0: scontrol requeue";        scontrol requeue "${job}_0"
say "a signal for the processes of task 1: SIGTERM"; scancel --signal=TERM "${job}_1"
say "task 2 has two minutes, and is warned one minute before they end"; scontrol update "jobid=${job}_2" timelimit=2
sleep 20
check "the run of task 0 was interrupted, with a checkpoint" "$(grep -q interrupted "$(folder 0)/status.json" && [[ -f $(folder 0)/checkpoints/last.pt ]] && echo yes, at step "$(step "$(folder 0)")" || echo no)"
check "the run of task 1 exited 143, and its script queued it again" "$(grep -q 'exit code 143' slurm/slurm/1-1.txt && grep -q 'queued again' slurm/slurm/1-1.txt && echo yes || echo no)"
for _ in $(seq 240); do grep -qs 'queued again' slurm/slurm/1-2.txt && break; sleep 1; done
check "the run of task 2 was warned by SIGUSR1, exited 138, and was queued again" "$(grep -q 'exit code 138' slurm/slurm/1-2.txt && grep -q 'queued again' slurm/slurm/1-2.txt && echo yes || echo no)"
scontrol update "jobid=${job}_2" timelimit=10

say "the node fails: scontrol update state=down"
before=$(restarts "${job}_3")
scontrol update nodename="$node" state=down reason=trial
sleep 15
check "task 3 was queued again by Slurm" "$([[ $(restarts "${job}_3") != "$before" ]] && echo yes || echo no), $before before, $(restarts "${job}_3") now"
scontrol update nodename="$node" state=resume
say "the node is back: $(sinfo --noheader)"

for _ in $(seq 240); do
  [[ -z $(state "$job") ]] && break
  sleep 5
done
"$PYTHON" -m metarun runs slurm
by_slurm > last.txt 2>&1
check "at last the same command prints the table and exits 0" "$([[ $? -eq 0 ]] && grep -q '4 of 4 runs completed' last.txt && echo yes || { cat last.txt; echo no; })"

say "the same sweep without Slurm"
sweep sweep_dir=local jobs=2 > local.txt 2>&1 || { cat local.txt; exit 1; }
check "checkpoints, metrics and scores are bit by bit those of the local sweep" "$(PYTHONPATH=$here:$PYTHONPATH "$PYTHON" -c '
from pathlib import Path
from sweep_trial import left_by
local, slurm = left_by(Path("local")), left_by(Path("slurm"))
other = [name for name in local if slurm.get(name) != local[name]]
print("no, not those of " + ", ".join(other) if other or len(slurm) != 4 else "yes")')"
((failed)) && say "NOT KEPT" || say "kept"
exit $failed
