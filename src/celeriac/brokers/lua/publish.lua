-- Publishes messages, all or none.
--
-- ARGV  4 number of lists; for each: queue, step, number of envelopes, the envelopes
--       then for each delayed message: queue, step, due, envelope

local lists = tonumber(ARGV[4])
local i = 5
for _ = 1, lists do
  call('LLEN', list_of(ARGV[i], ARGV[i + 1])) -- no list? Then nothing has happened yet.
  i = i + 3 + tonumber(ARGV[i + 2])
end
for n = i, #ARGV, 4 do
  call('LLEN', list_of(ARGV[n], ARGV[n + 1])) -- and what is delayed goes there one day
end

i = 5
for _ = 1, lists do
  local texts, count = {}, tonumber(ARGV[i + 2])
  for n = 1, count do
    texts[n] = ARGV[i + 2 + n]
  end
  push('LPUSH', ARGV[i], ARGV[i + 1], texts)
  i = i + 3 + count
end
for n = i, #ARGV, 4 do
  delay(ARGV[n], ARGV[n + 1], ARGV[n + 2], ARGV[n + 3])
end
