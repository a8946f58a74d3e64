"""The paper's two prompt sets and where a prompt goes (Sec. 3.3, App. A).

The phrases are data of the method: src_hypo_prompt.txt and ref_hypo_prompt.txt of neulab/BARTScore (Apache-2.0), in
their order. They were collected as synonyms of "in summary" and "that is to say".
"""

# Source -> hypothesis: ways to announce a summary.
SOURCE_PROMPTS = (
    "In a nutshell", "To conclude", "In brief", "Behind", "In short", "In the end", "Concisely", "Crisply",
    "At the end", "When all is said and done", "At last", "Lastly", "Summarising", "Not to beat about the bush",
    "To put it succinctly", "Elliptically", "In precis", "Just as importantly", "Pithily", "In sum", "In the rear",
    "To put it briefly", "In drawing things to a close", "In a few words", "Not to mince words", "Shortly", "To end",
    "Bringing up the rear", "Summarizing", "In summation", "After", "In the final analysis", "Last",
    "To cut a long story short", "To come to the point", "In fine", "Without wasting words", "Finally", "In a word",
    "In conclusion", "To summarize", "Without waste of words", "As a final point", "In essence", "Ultimately",
    "At the end of the day", "Compactly", "Laconically", "In winding up", "Last but not least", "At the rear",
    "Last in order", "Succinctly", "Briefly", "Curtly", "Not least of all", "Summarily", "All in all", "To sum up",
    "To put it concisely", "Tersely", "Not to put too fine a point on it", "Finally yet importantly", "Basically",
    "To be brief", "In outline", "To put it in a nutshell", "In closing", "Last of all", "In passing",
)  # fmt: skip

# Reference <-> hypothesis: ways to announce the same thing said again.
REFERENCE_PROMPTS = (
    "As it were", "Strictly speaking", "To put it another way", "That is", "To give an instance", "sc.",
    "That is to say", "i.e.", "Namely", "id est", "Videlicet", "To illustrate", "Scilicet", "Especially",
    "Particularly", "As an illustration", "In plain English", "For example", "Such as", "Like", "Specifically",
    "Expressly", "By way of illustration", "Case in point", "Specially", "By way of explanation", "Take for example",
    "To wit", "Viz.", "As", "For instance", "To give an example", "To rephrase it", "To be specific",
)  # fmt: skip

TRANSLATION_PROMPTS = ("Such as",)  # the only one tried in machine translation


def encoder_side(text: str, prompt: str) -> str:
    """The source x with a prompt behind it: "x In short,"."""
    return f"{text} {prompt},"


def decoder_side(text: str, prompt: str) -> str:
    """The target y behind a prompt: "In short, y". The prompt's own tokens are scored and counted with the rest."""
    return f"{prompt}, {text}"
