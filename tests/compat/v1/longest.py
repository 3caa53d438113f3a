def run(inputs, out, params):
    words = (inputs["words"] / "words.txt").read_text("utf-8").split()
    chosen = sorted(words, key=lambda word: (-len(word), word))[: params["count"]]
    (out / "longest.txt").write_text("\n".join(chosen) + "\n", "utf-8")
