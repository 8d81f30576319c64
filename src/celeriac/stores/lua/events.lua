-- The events of a task, ARGV[2], from position ARGV[3], at most ARGV[4]. First what a stock worker has written, and
-- the SHA-1 of what has been taken in of it.

local id, first = ARGV[2], tonumber(ARGV[3])
local text, stock = false, call('HGET', TASK .. id, 'stock')
local head = call('GETRANGE', META .. id, 0, #OURS - 1)
if head ~= '' and head ~= OURS then
  text = call('GET', META .. id)
end
return { text, stock, call('LRANGE', EVENTS .. id, first, first + tonumber(ARGV[4]) - 1) }
