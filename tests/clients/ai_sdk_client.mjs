// The AI SDK: text, streams, generated objects, tools whose results go in again, and errors.
import assert from "node:assert/strict";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, stepCountIs, streamObject, streamText, tool } from "ai";
import { z } from "zod";

globalThis.AI_SDK_LOG_WARNINGS = false;
const [, , baseURL] = process.argv;
const compatible = createOpenAICompatible({ name: "vbon", baseURL, supportsStructuredOutputs: true });
const openai = createOpenAI({ baseURL, apiKey: "none" });
const schema = z.object({ mood: z.enum(["good", "bad"]), stars: z.number().int() });
const review = tool({ description: "Keeps a review.", inputSchema: schema, execute: async () => "kept" });
const limits = { maxRetries: 0, maxOutputTokens: 600 };

for (const model of [compatible("ref"), compatible("bon"), openai.chat("ref"), openai.chat("bon")]) {
  const prompt = "the film was";
  const said = await generateText({ model, system: "Be brief.", prompt, seed: 1, ...limits, maxOutputTokens: 9 });
  assert.ok(said.text);

  const parts = [{ type: "text", text: "the film" }, { type: "text", text: " was" }];
  const streamed = streamText({
    model, ...limits, maxOutputTokens: 9,
    messages: [{ role: "user", content: parts }, ...said.response.messages, { role: "user", content: "more" }],
    onError: ({ error }) => { throw error; },
  });
  let text = "";
  for await (const piece of streamed.textStream) text += piece;
  assert.equal(await streamed.text, text);

  const { object } = await generateObject({ model, prompt, schema, ...limits });
  assert.ok(Number.isInteger(schema.parse(object).stars));
  const pieces = streamObject({ model, prompt, schema, ...limits });
  for await (const _ of pieces.partialObjectStream);
  schema.parse(await pieces.object);

  // The second step answers the tools' results.
  const called = await generateText({
    model, prompt, tools: { review }, toolChoice: "required", stopWhen: stepCountIs(2), ...limits, maxOutputTokens: 1500,
  });
  assert.equal(called.steps.length, 2);
  assert.ok(called.steps[0].toolResults.every((result) => result.output === "kept"));
}

await assert.rejects(
  generateText({ model: compatible("bon"), prompt: "a".repeat(9000), ...limits }),
  (error) => error.statusCode === 400 && error.responseBody.includes("context_length_exceeded"),
);
await assert.rejects(
  generateText({ model: openai("bon"), prompt: "a", ...limits }),
  (error) => error.statusCode === 404 && error.responseBody.includes("openai.chat("),
);
