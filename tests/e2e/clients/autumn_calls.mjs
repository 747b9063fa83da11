// Autumn's own library, its address and key set: customers, features, checks and uses, some of them twice.
// Arguments: address, key, "away" when nothing answers there. `failOpen: false`: the library would answer by itself
// when a server fails, and a test could not tell. Prints what the calls gave.
import { Autumn } from "autumn-js";

const [serverURL, secretKey, away] = process.argv.slice(2);
const autumn = new Autumn({ secretKey, serverURL, failOpen: false });
const failure = async (call) => {
  try {
    await call();
    return "none";
  } catch (error) {
    return `${error.statusCode ?? error.name}`;
  }
};

if (away) {
  console.log(JSON.stringify({ failed: await failure(() => autumn.track({ customerId: "js", featureId: "calls" })) }));
} else {
  const customer = await autumn.customers.getOrCreate({ customerId: "js", name: "A script", email: "js@example.com" });
  const again = await autumn.customers.getOrCreate({ customerId: "js" });
  const features = await autumn.features.list();
  const check = await autumn.check({ customerId: "js", featureId: "calls" });
  await autumn.check({ customerId: "js", featureId: "calls", requiredBalance: 2, sendEvent: true });
  const tracked = await autumn.track({ customerId: "js", featureId: "calls", value: 1.5, properties: { model: "m" } });
  await autumn.track({ customerId: "js", eventName: "call_made", value: -0.5, entityId: "seat-1", timestamp: 1793534400000 });
  for (let times = 0; times < 3; times += 1) {
    await autumn.track(
      { customerId: "js", featureId: "calls", value: 4 },
      { headers: { "Idempotency-Key": "js-once" } },
    );
    await autumn.batchTrack(
      [
        { customerId: "js", featureId: "calls", value: 8 },
        { customerId: "js-2", eventName: "call_made", value: 16 },
      ],
      { headers: { "Idempotency-Key": "js-batch" } },
    );
  }
  const unknown = await failure(() => autumn.track({ customerId: "js", featureId: "nothing" }));
  const set = await failure(() => autumn.balances.update({ customerId: "js", featureId: "calls", usage: 3 }));
  console.log(
    JSON.stringify({
      customer: [customer.id, customer.name, again.name],
      features: features.list.map((feature) => feature.id),
      check: [check.allowed, check.customerId],
      tracked: [tracked.customerId, tracked.value],
      unknown,
      set,
    }),
  );
}
