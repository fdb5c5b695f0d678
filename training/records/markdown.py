"""Tables for the pages that are made from records."""


def table(header, rows):
    """A Markdown table: column titles and rows of cells, whatever `str` makes of them."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
