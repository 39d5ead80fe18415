"""Where notifications come from, and the stacks they lie in; nothing here knows of Textual.

A source has a ``follow`` that yields :class:`News`: a file that is followed, a demo, the
Notification Center of macOS, or the session bus of a Linux desktop. An :class:`Inbox` stacks what
arrives.
"""

from afm_mlx.tui.inbox.arrivals import Arrived, News, Source
from afm_mlx.tui.inbox.box import Inbox, InboxOptions, Key, Stack

__all__ = ["Arrived", "Inbox", "InboxOptions", "Key", "News", "Source", "Stack"]
