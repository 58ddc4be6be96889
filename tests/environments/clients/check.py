"""Published rerank clients against a running server: each must keep the server's order.

The examples of docs/serving.md are run too, as they stand there.

python check.py URL
"""

import ast
import json
import pathlib
import re
import sys
import urllib.request
from collections.abc import Callable, Sequence

from cohere import Client, ClientV2
from haystack import Document as HaystackDocument
from haystack.utils import Secret
from haystack_integrations.components.rankers.cohere import CohereRanker
from haystack_integrations.components.rankers.jina import JinaRanker
from infinity_client import Client as InfinityClient
from infinity_client.api.default import rerank as infinity
from infinity_client.models import RerankInput
from langchain_cohere import CohereRerank as LangchainCohere
from langchain_core.documents import Document as LangchainDocument
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.postprocessor.cohere_rerank import CohereRerank as LlamaCohere
from llama_index.postprocessor.jinaai_rerank import JinaRerank as LlamaJina
from llama_index.postprocessor.tei_rerank import TextEmbeddingInference as LlamaTei

QUERY = "how tall is the tower"
TEXTS = [
    "The bridge was closed for repairs in spring.",
    "The tower is 324 metres tall, antennas included.",
    "",
    "Tickets for the tower can be bought online.",
    "A tall ladder leans on the wall.",
    "Visitors may climb the tower on foot.",
]
SHOWN = 4
NAMED = {"model": "ranker", "query": QUERY, "documents": TEXTS}
KEYED = {"api_key": "unused", "model": "ranker", "top_n": SHOWN}
HIDDEN = Secret.from_token("unused")


def by_text(found: Sequence[str]) -> list[int]:
    """Places in TEXTS."""
    return [TEXTS.index(text) for text in found]


def llama(reranker) -> list[int]:
    """Order of a LlamaIndex postprocessor."""
    nodes = [NodeWithScore(node=TextNode(text=one), score=0.0) for one in TEXTS]
    ranked = reranker.postprocess_nodes(nodes, query_bundle=QueryBundle(QUERY))
    return by_text([one.node.text for one in ranked])


def haystack(component) -> list[int]:
    """Order of a Haystack ranker."""
    given = [HaystackDocument(content=one) for one in TEXTS]
    ranked = component.run(query=QUERY, documents=given)
    return by_text([one.content for one in ranked["documents"]])


def langchain(url: str) -> list[int]:
    """Order of LangChain's compressor."""
    reranker = LangchainCohere(
        base_url=url, cohere_api_key="unused", model="ranker", top_n=SHOWN
    )
    given = [LangchainDocument(page_content=one) for one in TEXTS]
    ranked = reranker.compress_documents(given, QUERY)
    return by_text([one.page_content for one in ranked])


def indices(answer) -> list[int]:
    """Order of an answer that has results with an index."""
    return [one.index for one in answer.results][:SHOWN]


CLIENTS: dict[str, Callable[[str], list[int]]] = {
    "cohere v1": lambda url: indices(
        Client("unused", base_url=url).rerank(**NAMED, top_n=SHOWN)
    ),
    "cohere v2": lambda url: indices(
        ClientV2("unused", base_url=url).rerank(**NAMED, top_n=SHOWN)
    ),
    "infinity": lambda url: indices(
        infinity.sync(client=InfinityClient(base_url=url), body=RerankInput(**NAMED))
    ),
    "llama-index tei": lambda url: llama(LlamaTei(base_url=url, top_n=SHOWN)),
    "llama-index cohere": lambda url: llama(LlamaCohere(base_url=url, **KEYED)),
    "llama-index jina": lambda url: llama(LlamaJina(base_url=url, **KEYED)),
    "langchain cohere": langchain,
    "haystack cohere": lambda url: haystack(
        CohereRanker(model="ranker", api_key=HIDDEN, top_k=SHOWN, api_base_url=url)
    ),
    "haystack jina": lambda url: haystack(
        JinaRanker(
            model="ranker",
            api_key=HIDDEN,
            top_k=SHOWN,
            base_url=f"{url}/v1/rerank",
        )
    ),
}


def examples(url: str) -> dict[str, list[int]]:
    """Orders that the examples of the documentation give, by the first word of each."""
    page = pathlib.Path(__file__).parents[3] / "docs/serving.md"
    [_, clients] = page.read_text().split("\n## Clients\n")
    nodes = [NodeWithScore(node=TextNode(text=one), score=0.0) for one in TEXTS]
    given = {
        "LangChain": [LangchainDocument(page_content=one) for one in TEXTS],
        "LlamaIndex": nodes,
        "Haystack": [HaystackDocument(content=one) for one in TEXTS],
    }
    read = {
        "LangChain": lambda found: [one.page_content for one in found],
        "LlamaIndex": lambda found: [one.node.text for one in found],
        "Haystack": lambda found: [one.content for one in found["documents"]],
    }
    orders = {}
    for code in re.findall(r"```python\n(.*?)```", clients, re.S):
        name = code.splitlines()[0].strip("# ")
        tree = ast.parse(code.replace("http://localhost:8080", url))
        last = tree.body.pop()
        assert isinstance(last, ast.Expr), f"{name}: the last line is not an answer"
        known = {"query": QUERY, "documents": given[name], "nodes": nodes}
        exec(compile(tree, str(page), "exec"), known)
        answer = eval(compile(ast.Expression(last.value), str(page), "eval"), known)
        orders[name] = by_text(read[name](answer))[:SHOWN]
    assert set(orders) == set(given), orders
    return orders


def expected(url: str) -> list[int]:
    """The server's order, by its route of text-embeddings-inference."""
    body = json.dumps({"query": QUERY, "texts": TEXTS}).encode()
    request = urllib.request.Request(
        f"{url}/rerank", body, {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return [one["index"] for one in json.load(answer)][:SHOWN]


def main(url: str) -> None:
    """Asks every client."""
    right, failed = expected(url), 0
    for name, client in CLIENTS.items():
        try:
            found = client(url)
        except Exception as error:  # what a client raises is its result
            found = f"{type(error).__name__}: {error}"
        failed += found != right
        print(f"{name}: {'equal' if found == right else f'{found}, not {right}'}")
    orders = examples(url)
    for name, found in orders.items():
        failed += found != right
        print(f"example of {name}: {'equal' if found == right else found}")
    print(f"{len(CLIENTS) + len(orders) - failed} passed, {failed} failed")
    raise SystemExit(failed > 0)


if __name__ == "__main__":
    main(sys.argv[1])
