#!/bin/sh
# Print the commit of the source in the current folder as trainer/provenance.py reads it in an image, where there is no git:
# what GIT_COMMIT and GIT_DIRTY say, else what git says. What nobody knows is "unknown", and is not said to be clean.
set -eu
commit=${GIT_COMMIT:-}
dirty=${GIT_DIRTY:-}
if [ -z "$commit" ]; then
    commit=$(git rev-parse --verify HEAD) || {
        commit=unknown
        echo "WARNING: the commit is not known; build from a git clone, or say GIT_COMMIT and GIT_DIRTY in .env" >&2
    }
    # Of what goes into an image; code that git does not track does, too.
    if [ -z "$dirty" ] && changed=$(git status --porcelain -- hpo storage trainer pyproject.toml constraints.txt Dockerfile docker); then
        [ -n "$changed" ] || dirty=false
    fi
fi
dirty=${dirty:-true}
case $commit in *[!A-Za-z0-9._+-]*) echo "GIT_COMMIT is '$commit', which is no commit" >&2; exit 1 ;; esac
case $dirty in true | false) ;; *) echo "GIT_DIRTY is '$dirty', expected true or false" >&2; exit 1 ;; esac
printf '{"git_commit": "%s", "git_dirty": %s}\n' "$commit" "$dirty"
