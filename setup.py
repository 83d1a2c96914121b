"""The one build step that pyproject.toml cannot say: `configs/` becomes `futurel1/configs/` in a wheel.

The folder lies beside `src/`. Mapping a package to it (`package-dir`) would make every editable installation one of
import hooks, which type checkers cannot follow. An editable installation copies nothing: `futurel1.shipped_configs`
finds the folder of the repository.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """`build_py` that also copies the configurations."""

    def _configs(self) -> dict[str, str]:
        """Built file to its source, relative to the repository."""
        files = sorted(file for file in Path("configs").rglob("*") if file.suffix in (".yaml", ".txt"))
        return {str(Path(self.build_lib, "futurel1", file)): str(file) for file in files}

    def run(self) -> None:
        """Build the package, then copy."""
        super().run()
        if self.editable_mode:
            return
        for built, source in self._configs().items():
            self.mkpath(str(Path(built).parent))
            self.copy_file(source, built)

    def get_source_files(self) -> list[str]:
        """What a source distribution has to hold."""
        return [*super().get_source_files(), *self._configs().values()]

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """What a wheel holds."""
        return [*super().get_outputs(include_bytecode), *self._configs()]

    def get_output_mapping(self) -> dict[str, str]:
        """What an editable installation of links (`editable_mode=strict`) links to."""
        return {**super().get_output_mapping(), **self._configs()}


setup(cmdclass={"build_py": BuildWithConfigs})
