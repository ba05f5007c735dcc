"""Keras's model files, read without Keras: judged against lists, and copied for a framework to open.

    user's file ─ reading (a bounded process) ─> texts, and a plain copy of the arrays
                                                    │
                  whole.judged: configuration ──────┴─> whole.write_copy: what a framework opens

No framework opens the user's own file, in any room: only the copy, which holds a judged configuration in
float32 and arrays of plain numbers that were written anew. See `allowed` for what a configuration may name.
"""
