#compdef mtmeta
_mtmeta() {
    local line word
    local -a whole begun
    for line in "${(@f)$(_MTMETA_COMPLETE=zsh "${(Q)words[1]/#\~/$HOME}" "${(@)words[2,CURRENT]}" 2>/dev/null)}"; do
        word="${line%%$'\t'*}"
        [[ -n $word ]] || continue
        [[ $line == *$'\t'* ]] && line="${line#*$'\t'}" || line=""
        case "$word" in
            *[/=.]) begun+=("${word//:/\\:}${line:+:$line}") ;;
            *) whole+=("${word//:/\\:}${line:+:$line}") ;;
        esac
    done
    (( $#whole )) && _describe -V 'mtmeta' whole
    (( $#begun )) && _describe -V 'mtmeta' begun -S ''
    return 0
}
if [[ "${funcstack[1]}" == _mtmeta ]]; then
    _mtmeta "$@"
else
    (( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
    compdef _mtmeta mtmeta
fi
