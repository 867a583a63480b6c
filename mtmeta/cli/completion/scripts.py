"""The shells' side of completion: a function for each, which asks `mtmeta` itself (answer.py)."""

from __future__ import annotations

BASH = r"""
_mtmeta_complete() {
    local IFS=$'\n' word
    COMPREPLY=()
    while read -r word; do
        COMPREPLY+=("$word")
    done < <(_MTMETA_COMPLETE=bash "${COMP_WORDS[0]/#\~/$HOME}" "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[/=.] ]]; then
        compopt -o nospace 2>/dev/null
    fi
    return 0
}
complete -F _mtmeta_complete mtmeta
"""
ZSH = r"""
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
"""
FISH = r"""
function __mtmeta_complete
    set -l words (commandline -opc)
    set -l program $words[1]
    set -e words[1]
    set -l word (commandline -ct)
    set -lx _MTMETA_COMPLETE fish
    command $program $words "$word" 2>/dev/null
end
complete -c mtmeta -f -a '(__mtmeta_complete)'
"""
SCRIPTS = {"bash": BASH.lstrip(), "zsh": ZSH.lstrip(), "fish": FISH.lstrip()}
