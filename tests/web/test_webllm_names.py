"""Code as WebLLM's users write it, in a worker, whose page stays responsive meanwhile."""

from __future__ import annotations

from typing import Any

from serving import FileServer
from web_models import WebModel

README = """async (url) => {
  const webllm = sterna;
  const appConfig = { model_list: [{ model: url, model_id: "tern-q4f32_1-MLC" }] };
  const selectedModel = "tern-q4f32_1-MLC";
  const reports = [];
  const initProgressCallback = (report) => reports.push(report);
  const engine = await webllm.CreateWebWorkerMLCEngine(
    new Worker("/page/webllm_worker.js", { type: "module" }),
    selectedModel,
    { initProgressCallback, appConfig },
  );
  const messages = [
    { role: "system", content: "You are a helpful AI assistant." },
    { role: "user", content: "What is 12 + 30?" },
  ];
  const ticks = [performance.now()];
  const ticking = setInterval(() => ticks.push(performance.now()), 20);
  const chunks = await engine.chat.completions.create({
    messages, temperature: 0, stream: true, stream_options: { include_usage: true },
  });
  let reply = "", usage = null;
  for await (const chunk of chunks) {
    reply += chunk.choices[0]?.delta.content || "";
    if (chunk.usage) usage = chunk.usage;
  }
  clearInterval(ticking);
  const gaps = ticks.slice(1).map((tick, i) => tick - ticks[i]).sort((a, b) => a - b);
  const message = await engine.getMessage();
  const stats = await engine.runtimeStatsText();
  const kept = await webllm.hasModelInCache(selectedModel, appConfig);
  await engine.unload();
  await webllm.deleteModelInCache(selectedModel, appConfig);
  const left = await webllm.hasModelInCache(selectedModel, appConfig);
  return {
    reply, message, stats, usage, kept, left,
    reports: reports.length, last: reports.at(-1), gap: gaps[Math.floor(gaps.length / 2)],
    ticks: gaps.length,
  };
}"""


def test_the_readmes_code(page: Any, site: FileServer, tern: WebModel) -> None:
    site.folders["tern"] = tern.folder
    told = page.evaluate(README, f"{site.url}/tern/")
    assert "42" in told["reply"]
    assert told["message"] == told["reply"]
    assert told["stats"].startswith("prefill: ")
    assert told["usage"]["completion_tokens"] > 0
    assert (told["kept"], told["left"]) == (True, False)
    assert told["reports"] > 3
    assert told["last"]["progress"] == 1
    assert told["last"]["bytes"] == told["last"]["totalBytes"] == told["last"]["fetchedBytes"]
    assert set(told["last"]) >= {"progress", "timeElapsed", "text"}
    # a page that computed it itself would not tick in between, or only between two tokens
    assert told["ticks"] >= 5
    assert told["gap"] < 60, told
