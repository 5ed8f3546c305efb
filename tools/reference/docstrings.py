"""What docstrings in Google's style say, read by griffe."""

import griffe


def sections_of(docstring: str) -> list[griffe.DocstringSection]:
    """Return the parts of a docstring."""
    return griffe.Docstring(docstring).parse("google", warnings=False)


def arguments_of(docstring: str) -> dict[str, str]:
    """Return what a docstring says of each argument or attribute, by name."""
    return {
        item.name: in_one_line(item.description)
        for section in sections_of(docstring)
        if isinstance(
            section, griffe.DocstringSectionParameters | griffe.DocstringSectionAttributes
        )
        for item in section.value
    }


def in_one_line(text: str) -> str:
    """Return a text without the ends of its lines."""
    return " ".join(text.split())
