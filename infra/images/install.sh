#!/bin/sh
# Installs into an image under construction:
#   install.sh dependencies LOCK [REQUIREMENT ...]   what a lock file names, and more, into /opt/venv
#   install.sh project FOLDER LOCK GIT_SHA GIT_DIRTY  a project into /opt/bebygan, which /opt/venv finds; and whence it is
# Packages come from /wheels where `make images` has put them: then the build asks no index, and needs neither network nor
# credentials. Without them they come from the index that pip is set to.
set -eu

if ls /wheels/*.whl > /dev/null 2>&1; then
    export PIP_NO_INDEX=1 PIP_FIND_LINKS=/wheels
fi
python=/opt/venv/bin/python
install() {
    # This pip stays behind in the builder.
    /build/venv/bin/pip --disable-pip-version-check --python "$python" install --quiet --no-cache-dir --no-compile "$@"
}

case $1 in
dependencies)
    python3 -m venv /build/venv
    python3 -m venv --without-pip /opt/venv
    install --no-deps --require-hashes --requirement "$2"
    shift 2
    [ $# -eq 0 ] || install "$@"
    # 250 MB: packages' own tests, what torch.compile compiles against where there is a compiler, and the pages of MLflow's
    # server, but for what KEEP matches.
    headers=$(command -v c++ > /dev/null || echo '*/torch/include')
    find /opt/venv -type d \( -name tests -o -path '*/torch/test' -o -path "$headers" -o -path '*/mlflow/server/js' ! -path "${KEEP:-}" \) \
        -prune -exec rm -r {} +
    find /opt/venv -path '*/torch/bin/*' -type f ! -name torch_shm_manager -delete
    echo /opt/bebygan > "$($python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/bebygan.pth"
    compiled=/opt/venv
    ;;
project)
    install --no-deps --target /opt/bebygan "$2"
    printf '{"git_sha": "%s", "git_dirty": "%s", "lock_sha256": "%s"}\n' "$4" "$5" "$(sha256sum "$3" | cut -c-64)" \
        > /etc/bebygan.json
    compiled=/opt/bebygan
    ;;
esac
# Containers cannot write, so what is not compiled here is compiled at every start. Torch ships a test of newer syntax.
$python -m compileall -q -j 0 -x /torch/testing/_internal/ "$compiled"
