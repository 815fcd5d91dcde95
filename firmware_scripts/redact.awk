# Takes secrets out of text: awk -f redact.awk [-v known=FILE] [-v learn=FILE] [-v bytes_max=N] <text >text
# What it takes out is listed in docs/firmware-scripts.md; rather too much than too little. POSIX awk, without intervals.
#
#   known   values, a line each, that are taken out wherever they stand
#   learn   where to add the values that were taken out here, for `known` later
#   bytes_max  so much is printed, then that it was cut
BEGIN {
    SECRET = "(passw(or)?d|passphrase|passcode|pwd|secret|token|psk|api[_-]?key|private[_-]?key|privkey|access[_-]?key|" \
        "encryption[_-]?key|wep[_-]?key[0-9]*|credentials?|authorization|bearer|cookie|user[_-]?name|ssid)"
    GONE = "[removed]"
    if (known != "") while ((getline line < known) > 0) if (length(line) >= 6) {  # the longest first
        for (i = ++values_n; i > 1 && length(values[i - 1]) < length(line); i--) values[i] = values[i - 1]
        values[i] = line
    }
}

{
    line = $0
    sub(/\r$/, "", line)
    gsub(/[\001-\010\013-\037\177]|\302[\200-\237]/, "?", line)  # what a terminal would obey
    if (inside) {
        if (line ~ /-----END [A-Za-z0-9 ]*-----/) {
            inside = 0
            sub(/.*-----END [A-Za-z0-9 ]*-----/, "", line)
        } else next
    }
    while (match(line, /-----BEGIN [A-Za-z0-9 ]*-----/)) {
        before = substr(line, 1, RSTART - 1)
        rest = substr(line, RSTART + RLENGTH)
        if (match(rest, /-----END [A-Za-z0-9 ]*-----/)) line = before "[removed: PEM]" substr(rest, RSTART + RLENGTH)
        else {
            line = before "[removed: PEM]"
            inside = 1
        }
    }
    if (line ~ /-----END [A-Za-z0-9 ]*-----/) {  # its beginning was cut: what stands before it is the key's
        if (lines_n > 0) lines_n--  # the last may be short
        while (lines_n > 0 && body(lines[lines_n])) lines_n--
        sub(/.*-----END [A-Za-z0-9 ]*-----/, "[removed: PEM]", line)
    }
    lines[++lines_n] = named(opaque(keys(urls(flags(exactly(line))))))
}

END {
    for (i = 1; i <= lines_n; i++) {
        printed += length(lines[i]) + 1
        if (bytes_max > 0 && printed > bytes_max) {
            print "[cut: more than " bytes_max " bytes]"
            exit
        }
        print lines[i]
    }
}

function learned(value) {
    gsub(/^[ \t"']+|[ \t"',;]+$/, "", value)
    if (learn != "" && length(value) >= 6 && index(value, GONE) == 0) print value >> learn
}

# What a line of PEM may be: its last word is base64 and nothing but, or was taken out already.
function body(text,    words, n) {
    n = split(text, words, /[ \t]+/)
    return words[n] == GONE || (words[n] ~ /^[A-Za-z0-9+\/]+=*$/ && length(words[n]) >= 16)
}

function exactly(text,    i, at, done) {
    for (i = 1; i <= values_n; i++) {
        done = ""
        while ((at = index(text, values[i])) > 0) {
            done = done substr(text, 1, at - 1) GONE
            text = substr(text, at + length(values[i]))
        }
        text = done text
    }
    return text
}

# scheme://user:password@host, to the last @ of the word: a password may have one of its own, and quotes.
function urls(text,    done, word) {
    done = ""
    while (match(text, /[A-Za-z][A-Za-z0-9+.-]*:\/\/[^ \t]*@/)) {
        word = substr(text, RSTART, RLENGTH)
        done = done substr(text, 1, RSTART - 1) substr(word, 1, index(word, "://") + 2) GONE "@"
        text = substr(text, RSTART + RLENGTH)
        word = substr(word, index(word, "://") + 3)
        sub(/^[^:]*:/, "", word)
        sub(/@$/, "", word)
        learned(word)
    }
    return done text
}

# -u user -P password (or --pw), -u user:password
function flags(text,    done, word, match_start, match_length) {
    done = ""
    if (text ~ /(^|[ \t"'])(-P|--pw)[ \t=]/ && match(text, /(^|[ \t"'])(-u|--username)[ \t=]+[^ \t]+/))
        text = substr(text, 1, RSTART) "-u " GONE substr(text, RSTART + RLENGTH)
    while (match(text, /(^|[ \t"'])(-P|--pw)([ \t]+|=)[^ \t]+|(^|[ \t"'])(-u|--user)([ \t]+|=)[^ \t:]+:[^ \t]+/)) {
        word = substr(text, RSTART, RLENGTH)
        match_start = RSTART
        match_length = RLENGTH
        match(word, /-(-?pw|P|u|-user)([ \t]+|=)/)
        done = done substr(text, 1, match_start - 1) substr(word, 1, RSTART + RLENGTH - 1) GONE
        learned(substr(word, RSTART + RLENGTH))
        text = substr(text, match_start + match_length)
    }
    return done text
}

# Bodies of SSH keys; the name of the kind stays.
function keys(text) {
    gsub(/AAAA[A-Za-z0-9+\/=]+/, GONE, text)
    return text
}

# Words that look like keys or tokens: base64 of 32 and more with capitals, small letters and digits; hex of 32 and
# more but for 40 (git) and 64 (SHA-256, which packages are known by); eyJ... (JWT) is base64 with dots.
function opaque(text,    done, word) {
    done = ""
    while (match(text, /[A-Za-z0-9+\/_=-]+/)) {
        word = substr(text, RSTART, RLENGTH)
        done = done substr(text, 1, RSTART - 1)
        text = substr(text, RSTART + RLENGTH)
        done = done (suspect(word) ? GONE : word)
    }
    return done text
}

function suspect(word) {
    if (length(word) < 32) return 0
    if (word ~ /^[0-9a-fA-F]+$/) return length(word) != 40 && length(word) != 64
    return word ~ /[A-Z]/ && word ~ /[a-z]/ && word ~ /[0-9]/
}

# password=..., "token": "...", psk ..., with anything around the name: to the end of the quotes, else of the line.
function named(text,    small, at, name_end, gap, rest, quote, end) {
    small = tolower(text)
    if (!match(small, SECRET "[a-z0-9_.-]*[\"']?[ \t]*([=:]|[ \t])[ \t]*[^ \t]")) return text
    name_end = RSTART + RLENGTH - 2
    rest = substr(text, name_end + 1)
    quote = substr(rest, 1, 1)
    if (quote == "\"" || quote == "'") {
        end = 2
        while (end <= length(rest) && substr(rest, end, 1) != quote) end += substr(rest, end, 1) == "\\" ? 2 : 1
        learned(substr(rest, 2, end - 2))
        return substr(text, 1, name_end) quote GONE quote named(substr(rest, end + 1))
    }
    if (match(rest, /^\[removed[^\]]*\]/)) return substr(text, 1, name_end + RLENGTH) named(substr(rest, RLENGTH + 1))
    learned(rest)
    return substr(text, 1, name_end) GONE
}
