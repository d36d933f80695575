"""Execute the chapters before Sphinx reads them, and never show old outputs.

Active in every build whose `nb_execution_mode` is `cache`:

1. Before Sphinx reads, each chapter whose inputs changed is executed, side by
   side with others, into the jupyter-cache that MyST-NB reads.
2. A chapter that runs on a GPU or on the network is shown with the outputs
   kept in git, and its page says where they come from and how old they are.
3. A build that failed or warned leaves a mark, so that the next one reads all
   pages again and cannot turn green by reading none.

`python -m book_execution refresh` makes the outputs that are kept in git.
"""

from sphinx.application import Sphinx

from .build import Build
from .pages import ExecutionTable, ExecutionTableNode, fill_tables


def setup(app: Sphinx) -> dict:
    build = Build()
    app.add_node(ExecutionTableNode)
    app.add_directive("execution-table", ExecutionTable)
    app.connect("config-inited", build.begin)
    app.connect("env-get-outdated", build.prepare)
    app.connect("source-read", build.refuse_late_edit)
    app.connect("doctree-read", build.add_provenance)
    app.connect("env-updated", build.update_tables)
    app.connect("doctree-resolved", fill_tables)
    # Last, so that the warnings of all others are counted.
    app.connect("build-finished", build.end, priority=999)
    return {"version": "1", "parallel_read_safe": True}
