"""Certificates of peers: a private CA and keys."""

from __future__ import annotations

import click

import blockplane as bp
from blockplane.cli.options import json_option
from blockplane.cli.text import print_json, printable


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path(file_okay=False))
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option(
    "--renew",
    is_flag=True,
    help="New keys and certificates in the place of those that are there.",
)
@json_option
def cert(directory: str, names: tuple[str, ...], renew: bool, as_json: bool) -> None:
    """Make a private CA in DIR, and a key and a certificate for each host NAME.

    A NAME is a host name or an address, as others call it; NAME=OTHER,OTHER gives it more of them. What is there is
    never overwritten, but for --renew; further names can be added later. Every host needs ca.pem and its own NAME.pem
    and NAME.key, and no more: ca.key stays here.

    A CA lasts ten years, and a certificate five, but no longer than its CA. --renew makes new ones: of NAME with all
    names of the old one, of NAME=OTHER,OTHER with these alone, whatever others the old one had. For a CA that has ended
    there is no more than a new folder, and its files on all hosts.

    \b
    blockplane cert tls source backup=backup.example,10.0.0.2
    scp tls/ca.pem tls/backup.pem tls/backup.key backup:/etc/blockplane/tls/
    blockplane cert --renew tls backup
    """
    made = bp.make_certificates(directory, names, renew=renew)
    if as_json:
        listed = [
            {
                "names": list(found.names),
                "fingerprint": f"sha256:{found.fingerprint.hex()}",
                "certificate": str(found.certificate),
                "key": str(found.key),
                "expires": found.expires.isoformat(),
            }
            for found in made
        ]
        print_json({"directory": directory, "certificates": listed})
        return
    for found in made:
        print(f"{printable(str(found.certificate))}  sha256:{found.fingerprint.hex()}")
    if made[-1].ends_with_ca:
        print(f"ends with its CA, on {made[-1].expires:%Y-%m-%d}: make another CA, in another folder, before that")
    if renew:
        print("services go on with the old ones until they have the new files and are reloaded, or restarted")
        print("whoever pins or names an old fingerprint must be told the new one")
    print(f"{printable(directory)}/ca.key makes further certificates: keep it where nobody else can read it")


VERBS = (cert,)
