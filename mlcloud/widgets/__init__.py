"""What a notebook shows: HTML that follows the page's theme, with the same in plain text.

Nothing here knows where its data comes from, and nothing needs the kernel to be seen again.
"""
