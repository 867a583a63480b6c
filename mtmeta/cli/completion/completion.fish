function __mtmeta_complete
    set -l words (commandline -opc)
    set -l program $words[1]
    set -e words[1]
    set -l word (commandline -ct)
    set -lx _MTMETA_COMPLETE fish
    command $program $words "$word" 2>/dev/null
end
complete -c mtmeta -f -a '(__mtmeta_complete)'
