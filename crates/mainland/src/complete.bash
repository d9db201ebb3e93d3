# Readline takes words apart at `:`, `=` and `@`. For the program they are put together again, and what it offers is cut to what readline replaces.
_mainland_complete() {
    local rest=$COMP_LINE piece blank words=() last=-1 joined='' i
    for ((i = 0; i <= COMP_CWORD; i++)); do
        piece=${COMP_WORDS[i]}
        blank=${rest%%[![:space:]]*}
        rest=${rest#"$blank"}
        rest=${rest#"$piece"}
        if [[ $last -ge 0 && -z $blank && ($piece == [:=@]* || ${words[last]} == *[:=@]) ]]; then
            words[last]+=$piece
            joined=yes
        else
            last=$((last + 1))
            words[last]=$piece
            joined=''
        fi
    done
    # What stands behind the cursor stays as it is.
    local behind=$((${#COMP_LINE} - ${#rest} - COMP_POINT))
    if [[ $behind -gt 0 && $behind -le ${#words[last]} ]]; then
        words[last]=${words[last]:0:${#words[last]}-behind}
    fi
    [[ -n $joined ]] || words[last]=$2
    local before=${words[last]%"$2"}
    COMPREPLY=()
    local offered
    while IFS= read -r offered; do
        [[ -z $offered ]] || COMPREPLY+=("${offered#"$before"}")
    done < <(_CLAP_IFS=$'\n' _CLAP_COMPLETE_INDEX=$last MAINLAND_COMPLETE=bash PROGRAM -- "${words[@]}" 2>/dev/null && echo)
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[=/:] ]]; then
        compopt -o nospace 2>/dev/null
    fi
}
complete -o bashdefault -o nosort -F _mainland_complete mainland 2>/dev/null || complete -o bashdefault -F _mainland_complete mainland
