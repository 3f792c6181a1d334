# What shells do with forks: pipes, subshells, substitutions, jobs, a coprocess. Fails at the first that is not right.
set -euo pipefail
[ "$(seq 1 1000 | sort -rn | head -n 3 | tr '\n' ' ' || true)" = "1000 999 998 " ]
diff <(seq 1 100) <(for n in {1..100}; do echo "$n"; done)
(exit 7) || [ $? = 7 ]
sum=0
while read -r n; do sum=$((sum + n)); done < <(seq 1 100)
[ "$sum" = 5050 ]
for n in 1 2 3 4; do (exit "$n") & pids[n]=$!; done
for n in 1 2 3 4; do wait "${pids[n]}" && exit 1 || [ $? = "$n" ]; done
coproc cat
echo word >&"${COPROC[1]}"
read -r word <&"${COPROC[0]}"
[ "$word" = word ]
[ "$(yes | head -n 1 || true)" = y ]
tr a-z A-Z <<< through
