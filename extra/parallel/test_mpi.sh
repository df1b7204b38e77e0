#!/bin/sh
# test_mpi.sh - several processes against one: mpi.c and train_tiny under each MPI that is
# here, once between two hosts that share nothing but a network. There may be more processes than
# cores: their times say nothing.
# shellcheck source=tests/harness.sh
. "$(dirname "$0")/../../tests/harness.sh"
names=hmoe$$
clean() { ip netns del ${names}a; ip netns del ${names}b; }
many=4
[ -z "${FULL:-}" ] || many="2 4"   # FULL=1: every way, in a quarter of an hour
OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive MPI_DIR=$here/mpi
OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMP_NUM_THREADS OMP_WAIT_POLICY OMPI_ALLOW_RUN_AS_ROOT OMPI_ALLOW_RUN_AS_ROOT_CONFIRM MPI_DIR

run() {           # run N COMMAND...: in N processes
    n=$1; shift
    case $mpi in openmpi) timeout 300 $mpirun --oversubscribe --bind-to none -n "$n" "$@" ;;
    *) timeout 300 $mpirun -n "$n" "$@" ;; esac
}
ours() {          # ours COMMAND...: without what mpirun itself has to say
    "$@" 2>"$here/all"
    set -- $?
    grep -e '^train_tiny: ' -e '^(' "$here/all" >&2
    return "$1"
}
fails() {         # fails STATUS LINE N OPTIONS...: one line, once, whichever of N processes finds it
    status=$1 line=$2 n=$3; shift 3
    gives "$status" "$line" ours run "$n" $train "$@"
}
help_to_one() { run 1 $train --help : -n 1 $train --out e | grep -q -e --expert-ranks; }
build() {         # build PROGRAM SOURCE FLAGS...: with every warning an error
    program=$1 source=$2; shift 2
    "mpicc.$mpi" -std=${standard:-c99} -O2 -ffp-contract=fast -fno-math-errno -fopenmp -I"$root" -Wall -Wextra \
        -Wpedantic -Wshadow -Werror "$@" -o "$here/$program" "$root/$source" -lm
}
build_by() (      # build_by COMPILER STANDARD PROGRAM SOURCE FLAGS...: where there is that one
    have "$1" || exit 0
    standard=$2 OMPI_CC=$1 MPICH_CC=$1; export OMPI_CC MPICH_CC; shift 2
    build "$@"
)
same_curve() {    # same_curve A B: two logs have the same losses and norms to four digits
    awk -F, 'function off(a, b) { return (a - b > 0 ? a - b : b - a) > 1e-3 * (b > 0 ? b : -b) }
             FNR == NR { loss[$1] = $5; norm[$1] = $11; n++; next }
             FNR > 1 && (off(loss[$1], $5) || off(norm[$1], $11)) { print; bad = 1 }
             { m++ } END { exit bad || n != m || n < 2 }' "$1/log.csv" "$2/log.csv"
}
same_model() { cmp "$1/model.safetensors" "$2/model.safetensors"; }

without() { make -C "$root" mpi MPICC=no_mpicc 2>&1 | grep 'no no_mpicc: install Open MPI (Debian: '; }

# --- where an error is found, and what becomes of the others ----------------------------------
failures() {
    for n in $many; do
        check "not a directory" fails 1 'cannot make the directory' $n --out text/x
        check "no text" fails 1 'cannot read nothing' $n --out e --data nothing
        check "no run" fails 1 'there is no run' $n --out e --resume
        check "no such option" fails 2 'no such option' $n --out e --nonsense 1
        check "a batch that does not fit" fails 2 "multiple of the $n processes" \
            $n --out e --batch 9
        check "more expert ranks than pairs" fails 1 'whole pairs each, so a multiple of' \
            $n --out e --experts $n
        check "no such group" fails 2 'no multiple' $n --out e --expert-ranks 3
        check "a short list" fails 1 'expert 2 of 8 is on device -1' $n --out e --place 0,1
        check "a list with a comma too many" fails 2 'needs pairs, contiguous, or' \
            $n --out e --place 0,1,0,1,0,1,0,1,
        check "a long list" fails 2 'only 8 experts' $n --out e --place 0,1,0,1,0,1,0,1,0
        check "no list" fails 2 'needs pairs, contiguous, or' $n --out e --place 0,1,9
        check "a GPU" fails 2 'compute on the cpu only' $n --out e --backend cuda
        check "too high a rate" fails 1 'most likely --lr' \
            $n --out e --lr 1e30 --clip 0 --warmup 0
        check "no room" fails 1 'out of memory' $n --out e --width 65536 --hidden 100000
    done
    check "unequal options" fails 2 '--lr: process 0 has 0.002 by default and process 1 0.003' \
        1 --out e : -n 1 $train --out e --lr 0.003
    check "a float and a double" fails 1 'numbers of 4 bytes and process 1 with 8' 1 --out e : \
        -n 1 "$here/train_double" --data "$here/text" $recipe --out e
    check "a default against the same value" fails 2 '--k: process 0 has 2 by default' \
        1 --out e : -n 1 $train --out e --k 2
    check "help to one: no hang" help_to_one
    [ "$(id -u)" -eq 0 ] || { mkdir e2; chmod 555 e2
        check "a directory of others" fails 1 'cannot write' 2 --out e2; }
}

# A directory where a file is to be: the first process cannot write, and the older run stays.
no_place() {
    rm -rf full before
    run 2 $train --out full >/dev/null 2>&1
    cp -r full before
    mkdir -p full/.training.safetensors.hmoe.tmp/x
    fails 1 'cannot write.*training' 2 --out full --resume --steps 12 &&
        same_model full before && cmp full/training.safetensors before/training.safetensors &&
        rm -r full/.training.safetensors.hmoe.tmp && run 2 $train --out full --resume --steps 12
}

await() {         # await FILE: the run $whole makes it; not 0 where the run ends without it
    while [ ! -e "$1" ]; do kill -0 $whole 2>/dev/null || return 1; sleep 0.1; done
}
killed() {        # killed N WHICH: one of N processes, in the middle of a run; it is resumed by one
    rm -rf k
    run "$1" $train --out k --steps 100000000 --save-every 5 --warmup 1000 >/dev/null 2>&1 &
    whole=$!
    await k/config.json || return 1
    kill -9 "$(pgrep -f "^$here/train_$mpi.*--steps 100000000" | sed -n "$2p")"
    if wait $whole; then echo 'mpirun ended well'; return 1; fi
    run 1 $train --out k --resume --steps 1 && [ -s k/best/model.safetensors ]
}
interrupted() {   # one of them is asked to stop: all do, and say how to go on
    rm -rf i
    run 4 $train --out i --steps 100000000 --warmup 1000 >i.out 2>&1 &
    whole=$!
    await i/log.csv || return 1
    sleep 1
    kill -TERM "$(pgrep -f "^$here/train_$mpi.*--steps 100000000" | sed -n 3p)"
    wait $whole && tail -n 1 i.out && tail -n 1 i.out | grep -q 'go on: mpirun -n 4 .*--resume' &&
        run 2 $train --out i --resume --steps 1
}

ended() {         # mpirun itself is: MPICH waits for the last step, Open MPI only for a moment
    rm -rf i
    run 2 $train --out i --steps 100000000 --warmup 1000 --save-every 5 >i.out 2>&1 &
    whole=$!
    await i/training.safetensors || return 1
    pkill -TERM -f "^$mpirun .*$here/train_$mpi.*--steps 100000000"   # not timeout: that asks twice
    wait $whole
    run 1 $train --out i --resume --steps 1 >again.out || return 1
    [ $mpi = openmpi ] || { tail -n 1 i.out | grep 'go on: mpirun -n 2 .*--resume' &&
        grep "from step $(sed -n '$s/,.*//p' i/log.csv) " again.out; }
}

curves() {        # as one process alone, for the ways to train that there are
    set -- "--sizes modse --noisy --expert-ranks 2" "--optimizer muon --place 0,1,1,1,1,0,0,0"
    [ -z "${FULL:-}" ] || set -- "$@" "" "--pp 0 --lb 0.01 --place contiguous" \
        "--routing topp --dropout 0.1 --expert-ranks 1"
    for options in "$@"; do
        rm -rf one many again
        alone=$(echo "$options" | sed 's/--place [^ ]*//; s/--expert-ranks [^ ]*//')
        check "one process $options" run 1 $train --out one $alone
        for n in $many; do
            check "$n processes $options" run $n $train --out many $options
            check "the curve of $n processes $options" same_curve one many
        done
        check "again $options" run ${many##* } $train --out again $options
        check "the same bits $options" same_model many again
    done
}

resumed() {       # from 4 to 2 to 1 process, as if it had always been one
    run 1 $train --out a --steps 18 && run 4 $train --out b --steps 18 --stop-at 6 &&
        run 2 $train --out b --resume --steps 18 --stop-at 12 --expert-ranks 1 &&
        run 1 $train --out b --resume --steps 18 && same_curve a b &&
        [ "$(wc -l <b/log.csv)" -eq 19 ]
}

# --- two hosts: network namespaces with names and a file system of their own ----------------------------------
two_hosts() {
    a=${names}a b=${names}b
    ip netns add $a && ip netns add $b && ip link add $a netns $a type veth peer name $b netns $b &&
        ip -n $a addr add 10.77.0.1/24 dev $a && ip -n $b addr add 10.77.0.2/24 dev $b &&
        ip -n $a link set $a up && ip -n $b link set $b up &&
        ip -n $a link set lo up && ip -n $b link set lo up || return 1
    cat >"$here/there" <<END
#!/bin/sh
shift   # the host's address
exec ip netns exec $b unshare --uts --mount sh -c \
    "hostname $b; mount -t tmpfs none '$here/files' || exit 1; cd /; \$*"
END
    chmod +x "$here/there"
    ip netns exec $a unshare --uts sh -c "hostname $a; exec timeout 200 $mpirun \
        --host 10.77.0.1:1,10.77.0.2:1 --mca plm_rsh_agent $here/there --mca btl tcp,self \
        --mca pml ob1 --mca btl_tcp_if_include 10.77.0.0/24 --mca oob_tcp_if_include 10.77.0.0/24 \
        --bind-to none -n 2 $here/train_$mpi --data $here/files/text $recipe --out $here/files/two"
}

cd "$here" || exit 1
mkdir files mpi
head -c 60000 "$root/hmoe.h" >files/text
ln -s files/text text
recipe="--width 16 --layers 2 --heads 2 --context 16 --hidden 24 --batch 8 --steps 10 --eval-every 5
    --eval-tokens 500"
recipe=$(echo $recipe)
check "make mpi without MPI" without
for mpi in openmpi mpich; do
    mpirun=mpirun.$mpi numbers="1 2 4"
    [ $mpi = openmpi ] || [ -n "${FULL:-}" ] || numbers=2   # MPICH's processes wait by spinning
    if ! have "mpicc.$mpi" || ! have "$mpirun"; then
        echo "no mpicc.$mpi and $mpirun here: its tests are skipped"; continue
    fi
    train="$here/train_$mpi --data $here/text $recipe"
    check "$mpi: build the trainer" build train_$mpi train_tiny.c -DHMOE_MPI
    check "$mpi: the trainer in double" build train_double train_tiny.c -DHMOE_MPI \
        -DHMOE_REAL=double
    check "$mpi: the trainer, by clang" build_by clang c99 by_clang train_tiny.c -DHMOE_MPI
    check "$mpi: mpi.c, in C++17" build_by g++ c++17 in_cpp extra/parallel/mpi.c -x c++ \
        -DOMPI_SKIP_MPICXX -DMPICH_SKIP_MPICXX
    check "$mpi: build mpi.c, double" build double extra/parallel/mpi.c -DHMOE_REAL=double
    check "$mpi: build mpi.c, float" build float extra/parallel/mpi.c
    for n in $numbers; do
        rm -rf mpi/*
        check "$mpi: $n processes, double" run $n ./double
        rm -rf mpi/*
        check "$mpi: $n processes, float" run $n ./float
    done
    check "$mpi: one of them killed" killed 2 2
    check "$mpi: mpirun ended" ended
    if [ $mpi = mpich ] && [ -z "${FULL:-}" ]; then continue; fi   # all else is the same code
    check "resumed by fewer" resumed
    curves
    failures
    check "no place for a file" no_place
    check "the first one killed" killed 2 1
    check "interrupted" interrupted
    if [ $mpi = openmpi ] && unshare --net --uts --mount true 2>/dev/null && have ip; then
        check "two hosts" two_hosts
        rm -rf two
        check "one host" run 2 $train --out two
        check "two hosts as one" same_model two files/two
    elif [ $mpi = openmpi ]; then echo 'no rights or no ip(8) to make two hosts: skipped'; fi
done
summary
