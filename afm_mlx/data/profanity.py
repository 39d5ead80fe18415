"""Find profanities and slurs: a short list of English words that have no harmless meaning.

Words are matched whole, so Scunthorpe, shiitake and Dickens pass; letters may be written as the
signs that commonly stand for them (``sh1t``, ``f*ck``). Words that are also names, animals or
technical terms are left out: long lists mostly remove texts by and about the people whom slurs
are aimed at (arXiv 2104.08758).
"""

import re

WORDS = (
    "arsehole arseholes asshole assholes blowjob blowjobs bullshit bullshits bullshitter"
    " bullshitting clusterfuck* cocksucker cocksuckers cocksucking cumshot cumshots cunt cunts"
    " darkies dickhead dickheads dipshit dipshits dumbass dumbasses dumbfuck* faggot faggots"
    " faggotry fuck* gangbang gangbanged gangbangs handjob handjobs horseshit motherfuck* nigga"
    " niggas nigger niggers raghead ragheads sandnigger sandniggers shit shits shitface shithead"
    " shitheads shithole shitholes shitshow shitted shitting shitty slut sluts slutty towelhead"
    " towelheads twat twats wank wanker wankers wanking wetback wetbacks whore whores"
).split()
"""Lower case; ``*`` at the end stands for any ending."""

_SIGNS = {"a": "a4@*", "e": "e3*", "i": "i1!*", "o": "o0*", "u": "u*", "s": "s5$", "t": "t7"}


def _pattern(word: str) -> str:
    stem = word.removesuffix("*")
    letters = "".join(f"[{_SIGNS.get(letter, letter)}]" for letter in stem)
    return letters + ("[^\\W\\d_]*+" if word != stem else "")


_PROFANE = re.compile(rf"(?<![^\W_])(?:{'|'.join(map(_pattern, WORDS))})(?![^\W_])", re.IGNORECASE)


def profane(text: str) -> list[str]:
    """The profane words of ``text``, as they are written there."""
    found = (match[0] for match in _PROFANE.finditer(text))
    # At least half are letters: 5h17 is a time.
    return [word for word in found if 2 * sum(c.isalpha() for c in word) >= len(word)]


def profane_share(text: str) -> float:
    """Share of profane words among those between blanks, between 0 and 1."""
    return min(1.0, len(profane(text)) / max(1, len(text.split())))
