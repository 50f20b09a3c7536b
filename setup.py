from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

cfg = ConfigParser(delimiters=["="])
cfg.read(Path(__file__).with_name("settings.ini"), encoding="utf-8")
cfg = cfg["DEFAULT"]

# README.md names files of the repository; on the package page they need their full address: pictures that of the site, which
# serves them as what they are.
readme = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
for before in ("](", '="'):
    for folder, address in (("nbs/images/", f"{cfg['doc_host']}{cfg['doc_baseurl']}/images/"), ("nbs/", f"{cfg['git_url']}/blob/{cfg['branch']}/nbs/")):
        readme = readme.replace(before + folder, before + address)

extras = {k.removesuffix("_requirements"): v.split() for k, v in cfg.items() if k.endswith("_requirements")}
extras["all"] = sorted({r for name, rs in extras.items() if name not in ("dev", "course") for r in rs})

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=readme,
    long_description_content_type="text/markdown",
    url=cfg["git_url"],
    project_urls={"Course": cfg["doc_host"] + cfg["doc_baseurl"], "Changes": f"{cfg['git_url']}/blob/{cfg['branch']}/CHANGELOG.md"},
    author=cfg["author"],
    author_email=cfg["author_email"],
    license="Apache-2.0",
    keywords=cfg["keywords"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: " + cfg["audience"],
        "Natural Language :: " + cfg["language"],
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 14)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    packages=find_packages(include=["gptlearn", "gptlearn.*"]),
    package_data={"gptlearn": cfg["package_data"].split()},
    python_requires=">=" + cfg["min_python"],
    install_requires=cfg["requirements"].split(),
    extras_require=extras,
    entry_points={"console_scripts": cfg["console_scripts"].split(), "nbdev": [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"]},
    zip_safe=False,
)
