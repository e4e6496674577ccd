#!/bin/sh
# Installs into an image under construction:
#   install.sh dependencies LOCK [REQUIREMENT ...]    the packages of a lock file, and more, into /opt/venv
#   install.sh project FOLDER LOCK GIT_SHA GIT_DIRTY  the project into /opt/bebygan, which is on /opt/venv's path, and its
#                                                     revision into /etc/bebygan.json
# If `make images` has put packages into /wheels, they are installed from there, without network or credentials. Otherwise
# they come from pip's package index.
set -eu

if ls /wheels/*.whl > /dev/null 2>&1; then
    export PIP_NO_INDEX=1 PIP_FIND_LINKS=/wheels
fi
python=/opt/venv/bin/python
install() {
    # The final image does not contain this pip.
    /build/venv/bin/pip --disable-pip-version-check --python "$python" install --quiet --no-cache-dir --no-compile "$@"
}

case $1 in
dependencies)
    python3 -m venv /build/venv
    python3 -m venv --without-pip /opt/venv
    install --no-deps --require-hashes --requirement "$2"
    shift 2
    [ $# -eq 0 ] || install "$@"
    # 250 MB: packages' own tests, the headers that torch.compile uses if there is a compiler, and the pages of MLflow's
    # server except those that KEEP matches.
    headers=$(command -v c++ > /dev/null || echo '*/torch/include')
    find /opt/venv -type d \( -name tests -o -path '*/torch/test' -o -path "$headers" -o -path '*/mlflow/server/js' ! -path "${KEEP:-}" \) \
        -prune -exec rm -r {} +
    find /opt/venv -path '*/torch/bin/*' -type f ! -name torch_shm_manager -delete
    echo /opt/bebygan > "$($python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/bebygan.pth"
    compiled=/opt/venv
    ;;
project)
    install --no-deps --target /opt/bebygan "$2"
    # The wheel contains only the library. The command `bebygan` finds the pipeline beside it.
    cp -R "$2/components" "$2/pipelines" /opt/bebygan
    printf '{"git_sha": "%s", "git_dirty": "%s", "lock_sha256": "%s"}\n' "$4" "$5" "$(sha256sum "$3" | cut -c-64)" \
        > /etc/bebygan.json
    compiled=/opt/bebygan
    ;;
esac
# Containers cannot write bytecode: a module not compiled here is compiled at every start. One of torch's files has a syntax
# newer than this Python.
$python -m compileall -q -j 0 -x /torch/testing/_internal/ "$compiled"
