def run(inputs, out, params):
    text = (inputs["text"] / "text.txt").read_text("utf-8")
    (out / "words.txt").write_text("\n".join(sorted(set(text.split()))) + "\n", "utf-8")
