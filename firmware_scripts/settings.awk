# What may be told of settings: awk -v kind=env|unit [...] -f settings.awk -f redact.awk <file >text
# A rule and no list of secrets: of NAME=VALUE only the names below keep what is harmless in their values, every other
# value is removed, and so are comments, and in `env` each line that is not NAME=VALUE. In `unit` that holds for
# Environment= and for NAME=VALUE in capitals within other lines; the rest of a unit is left to redact.awk.
# What was removed is learned (redact.awk), each line of a value by itself as well.
BEGIN {
    HOLDS["FERRYMAN_DEVICE"] = "word"
    HOLDS["FERRYMAN_OPTIONS"] = "options"
    places = "BROKER DATABASE REPOSITORY_URL REPOSITORY OUTBOX ROOT DEVICES RUNNER"
    for (i = split(places, names, " "); i > 0; i--) HOLDS["FERRYMAN_" names[i]] = "place"
    DIGITS = "0123456789abcdef"
    PATH = "^/(dev|etc|home|mnt|opt|run|srv|tmp|usr|var)(/[A-Za-z0-9_.-]*)*$"
}

kind != "" {
    sub(/\r$/, "")
    if (!goes_on && /^[ \t]*[#;]/) {
        if ((at = index($0, "=")) > 0) learned(substr($0, at + 1))
        next
    }
    went_on = goes_on
    if (went_on) learned($0)
    else whole = ""
    whole = whole $0
    goes_on = more()
    if (goes_on && !went_on) learned(substr($0, index($0, "=") + 1))
    if (goes_on) next
    $0 = kind == "env" ? setting(whole) : unit_line(whole)
}

END { if (goes_on) lines[++lines_n] = GONE }

# Whether the next line belongs to this one: after a backslash, and in `env` within quotes.
function more(    text, at) {
    if (match(whole, /\\+$/) && RLENGTH % 2 == 1) {
        whole = substr(whole, 1, length(whole) - 1)
        return 1
    }
    if (kind != "env") return 0
    text = whole
    sub(/^[^=]*=[ \t]*/, "", text)
    while (text ~ /^["']/) {
        at = quote_end(text)
        if (at > length(text)) return 1
        text = substr(text, at + 1)
        sub(/^[ \t]+/, "", text)
    }
    return 0
}

# Where the quotes that `text` begins with end: past its end where they do not.
function quote_end(text,    i) {
    for (i = 2; i <= length(text) && substr(text, i, 1) != substr(text, 1, 1); i++)
        if (substr(text, i, 1) == "\\") i++
    return i
}

function setting(text,    name) {
    if (text ~ /^[ \t]*$/) return ""
    # In capitals or in small letters: the last line of a PEM key looks like NAME= too, and is neither.
    if (!match(text, /^[ \t]*(export[ \t]+)?([A-Z_][A-Z0-9_]*|[a-z_][a-z0-9_]*)[ \t]*=/)) return removed(text)
    name = substr(text, 1, RLENGTH - 1)
    text = substr(text, RLENGTH + 1)
    sub(/^[ \t]*(export[ \t]+)?/, "", name)
    sub(/[ \t]+$/, "", name)
    return name "=" harmless(name, text)
}

function unit_line(text,    done, word, name) {
    if (match(text, /^[ \t]*Environment[ \t]*=/)) {
        text = substr(text, RLENGTH + 1)
        done = "Environment="
        while ((word = first_word(text)) != "") {
            text = REST
            word = bare(word)
            name = substr(word, 1, index(word, "=") - 1)
            word = name ~ /^[A-Za-z_][A-Za-z0-9_]*$/ ? name "=" harmless(name, substr(word, length(name) + 2)) : removed(word)
            done = done (done ~ /"$/ ? " " : "") "\"" word "\""
        }
        return done
    }
    if (!match(text, /(^|[^A-Za-z0-9_])[A-Z_][A-Z0-9_]*=/)) return text
    done = substr(text, 1, RSTART + RLENGTH - 1)
    text = substr(text, RSTART + RLENGTH)
    learned(first_word(text))
    return done removed(text)
}

# The first word as systemd takes it, quotes anywhere in it; REST is what follows.
function first_word(text,    i) {
    sub(/^[ \t]+/, "", text)
    for (i = 1; i <= length(text) && substr(text, i, 1) !~ /[ \t]/; i++) {
        if (substr(text, i, 1) == "\\") i++
        else if (substr(text, i, 1) ~ /["']/) i += quote_end(substr(text, i)) - 1
    }
    REST = substr(text, i)
    return substr(text, 1, i - 1)
}

# Without the quotes around it.
function bare(text) {
    gsub(/^[ \t]+|[ \t]+$/, "", text)
    if (text ~ /^["']/ && quote_end(text) == length(text)) return substr(text, 2, length(text) - 2)
    return text
}

function removed(text) {
    learned(text)
    return GONE
}

function harmless(name, value,    holds) {
    value = bare(value)
    if (value == "") return ""
    holds = (name in HOLDS) ? HOLDS[name] : ""
    if (holds == "word" && value ~ /^[A-Za-z0-9_.%-]+$/ && length(value) <= 64) return value
    if (holds == "options") return options(value)
    value = place(value)
    return holds == "place" ? value : GONE
}

# A path; of a URL scheme, host and port.
function place(text,    done, at, info) {
    if (text ~ PATH) return text
    if (!match(text, /^[A-Za-z][A-Za-z0-9+.-]*:\/\//)) return removed(text)
    done = substr(text, 1, RLENGTH)
    text = substr(text, RLENGTH + 1)
    if (match(text, /.*@/)) {
        info = substr(text, 1, RLENGTH - 1)
        text = substr(text, RLENGTH + 1)
        done = done removed(info) "@"
        at = index(info, ":")
        if (at > 0) learned(substr(info, at + 1))
        if (at > 0) learned(decoded(substr(info, at + 1)))
    }
    match(text, /^(\[[0-9A-Fa-f:.]*\]|[A-Za-z0-9_.-]*)(:[0-9]+)?\/?/)
    done = done substr(text, 1, RLENGTH)
    text = substr(text, RLENGTH + 1)
    if (text == "") return done
    for (at = split(text, parts, /[?&;]/); at > 0; at--) {
        sub(/^[^=]*=/, "", parts[at])
        learned(parts[at])
    }
    return done removed(text)
}

# %40 is @
function decoded(text,    done, high, low) {
    done = ""
    while (match(text, /%[0-9A-Fa-f][0-9A-Fa-f]/)) {
        high = index(DIGITS, tolower(substr(text, RSTART + 1, 1))) - 1
        low = index(DIGITS, tolower(substr(text, RSTART + 2, 1))) - 1
        done = done substr(text, 1, RSTART - 1) sprintf("%c", high * 16 + low)
        text = substr(text, RSTART + 3)
    }
    return done text
}

# Names of options, numbers, sizes, places and a few words.
function options(text,    done, word, name) {
    done = ""
    while ((word = first_word(text)) != "") {
        text = REST
        word = bare(word)
        name = ""
        if (match(word, /^--[a-z][a-z-]*(=|$)/)) {
            name = substr(word, 1, RLENGTH)
            word = substr(word, RLENGTH + 1)
        }
        if (word !~ /^(full|metered|offline|collector|broker|device)?$/ && (word !~ /^[0-9.]+[kKMG]?i?B?$/ || length(word) > 6))
            word = place(word)
        done = done (done == "" ? "" : " ") name word
    }
    return done
}
