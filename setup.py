"""Build configuration; the metadata is in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    packages=find_packages(include=["qbee", "qbee.*"]),
    package_data={
        "qbee": ["py.typed"],
        "qbee.export": ["firmware_files/**/*.jinja"],
        "qbee.report": ["*.html"],
    },
    # Installed, the search spaces are found below the environment's prefix.
    data_files=[
        ("share/qbee/search_spaces", [str(p) for p in sorted(Path("search_spaces").glob("*.json"))])
    ],
)
