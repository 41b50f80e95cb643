// A client of Keepsake for Node.js, written from docs/contract.md alone: npm's `redis` and JSON.

import { randomUUID } from "node:crypto";
import { createClient } from "redis";

const REQUESTS = "ltm_requests";
const RESPONSES = "ltm_responses";
const UPDATES = "memory_updates";
const STREAM = "memory_updates:log";
const STREAM_MAX_LEN = 100_000;

export class Memory {
  #redis;
  #subscriber;
  #pending = new Map(); // request_id -> the function that takes its response

  static async connect(url) {
    const memory = new Memory();
    // Without the offline queue, commands fail at once while Redis is down; the subscriber needs it to resubscribe.
    memory.#redis = createClient({ url, pingInterval: 5_000, disableOfflineQueue: true });
    memory.#subscriber = memory.#redis.duplicate({ disableOfflineQueue: false });
    for (const client of [memory.#redis, memory.#subscriber]) {
      client.on("error", (error) => console.error(`redis: ${error.message}`)); // it reconnects by itself
      await client.connect();
    }
    // Before the first request: a channel keeps nothing.
    await memory.#subscriber.subscribe(RESPONSES, (text) => memory.#receive(text));
    return memory;
  }

  // The user's memories, best first; an empty list where no response came in time.
  async search(userId, query, { limit = 5, deadlineMs = 600 } = {}) {
    const requestId = randomUUID();
    const data = { query, limit, deadline_ms: deadlineMs };
    const request = JSON.stringify({ request_id: requestId, type: "search", user_id: userId, data });
    let timer;
    const response = new Promise((resolve) => {
      this.#pending.set(requestId, resolve);
      timer = setTimeout(resolve, deadlineMs, null);
    });
    try {
      await Promise.race([this.#redis.lPush(REQUESTS, request), response]);
      const answer = await response;
      if (answer === null) this.#redis.lRem(REQUESTS, 1, request).catch(() => {}); // if no adapter has taken it
      else if (!answer.success) console.error(`search: ${answer.error.split(":")[0]}`); // its code; the rest may quote
      return answer?.success ? answer.memories : [];
    } catch (error) {
      console.error(`search: ${error.message}`);
      return [];
    } finally {
      clearTimeout(timer);
      this.#pending.delete(requestId);
    }
  }

  // Publishes one message of the user or the AI, in the stream and on the channel in one transaction.
  async remember(userId, content, { source = "user", session, messageId = randomUUID() } = {}) {
    const event = JSON.stringify({
      user_id: userId,
      content,
      source,
      timestamp: Date.now() / 1000,
      meta: session === undefined ? {} : { session_id: session },
      message_id: messageId,
      logged: true, // it is in the stream
    });
    const trim = { TRIM: { strategy: "MAXLEN", strategyModifier: "~", threshold: STREAM_MAX_LEN } };
    await this.#redis.multi().xAdd(STREAM, "*", { event }, trim).publish(UPDATES, event).exec();
    return messageId;
  }

  close() {
    this.#subscriber.destroy();
    this.#redis.destroy();
  }

  #receive(text) {
    let response;
    try {
      response = JSON.parse(text);
    } catch {
      return; // other publishers may send anything
    }
    this.#pending.get(response?.request_id)?.(response); // those to other clients are on the channel too
  }
}
