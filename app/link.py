"""A link that restores the settings: in a box to copy, and in the browser's address."""

import gradio as gr

# the query comes from the server, the address in front of it is the browser's to know; __theme is Gradio's light or dark
_TO_LINK = """(query) => {
    if (!query) return "";
    const address = new URL(window.location.href);
    const theme = address.searchParams.get("__theme");
    address.search = query;
    address.hash = "";
    const link = address.href;
    if (theme) address.searchParams.set("__theme", theme);
    window.history.replaceState(window.history.state, "", address.href);
    return link;
}"""


def link_box(name: str) -> tuple[gr.Textbox, gr.Textbox]:
    """The box, shown once there is a link, and a hidden one that takes the query."""
    query = gr.Textbox(visible="hidden", elem_id=f"{name}-query")
    box = gr.Textbox(
        label="A link to these settings",
        interactive=False,
        visible=False,
        lines=1,
        max_lines=1,
        buttons=["copy"],
        elem_id=f"{name}-link",
    )
    query.change(None, query, box, js=_TO_LINK)
    return box, query
